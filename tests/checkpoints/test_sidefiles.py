"""Tokenizer, generation config, licence go along; weights in any form do not."""

from pathlib import Path

from fxfuse.checkpoints.sidefiles import side_files

GOING = ["LICENSE", "chat_template.jinja", "generation_config.json", "tokenizer.model", "vocab/merges.txt"]


def make(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


def kept(folder: Path, *read: str) -> dict[str, str]:
    """What goes along: its name here by its name there."""
    found, _ = side_files(folder, [folder / name for name in read])
    return {each.name: each.source.relative_to(folder).as_posix() for each in found}


def test_everything_that_is_no_weight_goes_along(tmp_path: Path) -> None:
    make(tmp_path, *GOING, "config.json", "fxfuse.json", ".gitattributes", ".cache/x", "model.safetensors")
    assert kept(tmp_path, "model.safetensors") == {name: name for name in GOING}


def test_other_weights_are_left_behind_and_told(tmp_path: Path) -> None:
    names = ["pytorch_model.bin", "consolidated.00.pth", "model.gguf", "consolidated.safetensors"]
    make(tmp_path, *names, "pytorch_model.bin.index.json", "model.safetensors.index.json", "m.safetensors")
    found, left = side_files(tmp_path, [tmp_path / "m.safetensors"])
    assert found == []
    assert left == sorted([*names, "pytorch_model.bin.index.json"])


def test_folder_of_other_weights_is_left_behind_whole(tmp_path: Path) -> None:
    make(tmp_path, "original/consolidated.pth", "original/params.json", "sub/a.safetensors")
    assert side_files(tmp_path, [tmp_path / "sub/a.safetensors"]) == ([], ["original/"])


def test_card_is_kept_beside_the_new_one(tmp_path: Path) -> None:
    make(tmp_path, "README.md")
    assert kept(tmp_path) == {"README-source.md": "README.md"}
    make(tmp_path, "README-source.md")  # of a model that was fused before: the older card says more
    assert kept(tmp_path) == {"README-source.md": "README-source.md"}


def test_links_are_followed_to_files(tmp_path: Path) -> None:
    make(tmp_path / "blobs", "abc")
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot" / "tokenizer.json").symlink_to(tmp_path / "blobs" / "abc")
    (tmp_path / "snapshot" / "gone.json").symlink_to(tmp_path / "nowhere")
    found, _ = side_files(tmp_path / "snapshot")
    assert [each.name for each in found] == ["tokenizer.json"]
    assert found[0].nbytes == 3
