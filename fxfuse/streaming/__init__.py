"""Measure and recover checkpoints that do not fit into memory: one block at a time from disk.

    for each update of the stream:          an attention or an FFN, read once in a pass
        for each batch:                     all of them before the next update is read
            x  ->  x + branch(x)            and every changed stream that is measured beside x

A changed model (a group fused, an attention or a block left out) is a stream of its own that leaves the
sequential one where the change is, and runs beside it to the logits: so one pass over the files measures all
changes at once. Streams are kept in `fxfuse.calibration.store`, which sends to a file what passes the bound;
where that would move more bytes than reading the checkpoint again, the batches go in several passes. Memory
holds one update's weights, one batch at work, and the bound. Layers are transformers' own modules.
"""
