"""Every way a norm, an FFN and a residual add are written, declared once for both kinds of graph."""
