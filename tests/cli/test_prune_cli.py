"""`attlas prune` from the command line: budgets, healing, and one line with status 2 for every bad input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from attlas.cli import main
from attlas.data.models_catalog import EMBEDDED_DIR
from attlas.data.workspace import Workspace
from attlas.errors import ConfigError
from attlas.interp import load_model
from attlas.interp.drop import Drop

pytestmark = pytest.mark.usefixtures("quick_strangers")

SMALL = ["--n-tokens", "1024", "--calibration-tokens", "1024", "--seq-len", "128"]


def _run(capsys: pytest.CaptureFixture[str], tmp_path: Path, *argv: str) -> tuple[int, dict, str]:
    status = main(["prune", *argv, "--workspace", str(tmp_path / "w"), "--json"])
    streams = capsys.readouterr()
    return status, json.loads(streams.out) if streams.out else {}, streams.err


def test_chosen_by_scores_healed_and_written(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    argv = ["--target", "block", "--n", "1", "--out", str(out), "--heal-steps", "2", *SMALL]
    status, result, _ = _run(capsys, tmp_path, *argv)
    assert status == 0
    assert result["format"] == "stock"
    assert result["parameters_after"] < result["parameters_before"]
    assert result["kv_bytes_after"] * 4 == result["kv_bytes_before"] * 3
    assert result["loss_after"] < result["loss_before_healing"]
    assert load_model(out, device="cpu").cfg.n_layers == 3
    assert (out / "tokenizer.json").is_file()
    card = (out / "README.md").read_text()
    assert "license: apache-2.0" in card
    assert result["dropped"][0] in card
    workspace = Workspace(tmp_path / "w")
    assert workspace.read_table(result["run"], "drop_curve").column("order").to_pylist() == [
        "dense",
        "ranked",
        "healed",
    ]
    assert workspace.read_table(result["run"], "healing").num_rows == 3


def test_curve_is_saved(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    argv = ["--targets", "attn", "--counts", "1", "--n-random", "2", *SMALL]
    status, result, _ = _run(capsys, tmp_path, *argv)
    assert status == 0
    assert len(result["rows"]) == 1 + 2 + 3
    assert Workspace(tmp_path / "w").latest("drop_curve") is not None


def test_a_loss_budget_is_chosen_on_one_half_and_told_on_the_other(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    argv = ["--target", "head", "--max-delta-ce", "0.05", "--n-tokens", "2048", "--seq-len", "128", "--out", str(out)]
    status, result, _ = _run(capsys, tmp_path, *argv, "--calibration-tokens", "1024")
    assert status == 0
    chosen, told = (result[key].split("(")[1][:16] for key in ("count_chosen_on", "measured_on"))
    assert chosen != told
    assert "8 sequences" in result["count_chosen_on"]
    assert "8 sequences" in result["measured_on"]
    assert result["delta_where_chosen"] <= 0.05
    assert result["delta"] == pytest.approx(result["loss_after"] - result["loss_before"])
    assert result["delta"] != result["delta_where_chosen"]
    assert result["delta_low"] < result["delta"] < result["delta_high"]
    card = (out / "README.md").read_text()
    assert chosen in card
    assert told in card
    summary = Workspace(tmp_path / "w").run(result["run"]).summary
    assert summary["count_chosen_on"] == result["count_chosen_on"]


def test_images(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    argv = ["--model", "vit-mini", "--n-images", "40", "--target", "mlp", "--n", "1", "--out", str(tmp_path / "v")]
    status, result, _ = _run(capsys, tmp_path, *argv)
    assert status == 0
    assert "20 predictions" in result["measured_on"]
    assert (tmp_path / "v" / "preprocessor_config.json").is_file()


def test_a_compact_checkpoint_keeps_its_dtype_and_is_pruned_again(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The default format, from the embedded float16 model: half the bytes of float32, and a model like any other."""
    one, two = tmp_path / "one", tmp_path / "two"
    status, result, _ = _run(capsys, tmp_path, "--target", "attn", "--n", "1", "--to", str(one), *SMALL)
    assert status == 0
    assert result["format"] == "compact"
    assert result["kv_bytes_before"] == 4 * 2 * 192 * 2
    assert result["kv_bytes_after"] == 3 * 2 * 192 * 2
    assert (one / "model.safetensors").stat().st_size < (EMBEDDED_DIR / "gpt2-mini/model.safetensors").stat().st_size
    argv = ["--model", str(one), "--target", "attn", "--order", "iterative", "--n", "1", "--out", str(two), *SMALL]
    status, again, _ = _run(capsys, tmp_path, *argv)
    assert status == 0
    assert again["dropped"] != result["dropped"]
    assert again["loss_before"] == pytest.approx(result["loss_after"], abs=1e-5)
    assert again["kv_bytes_after"] == 2 * 2 * 192 * 2
    card = (two / "README.md").read_text()
    assert "AutoModelForCausalLM.from_pretrained(" in card
    assert "absent: no weights, no arithmetic, no KV cache" in card
    assert "each without those before it" in card
    assert "license: apache-2.0" in card


def test_a_dinov2_backbone(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """No classifier: modules by their scores, losses by how far features turn; heads need a loss and say so."""
    from transformers import Dinov2Config, Dinov2Model

    sizes = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 28, "patch_size": 14}
    Dinov2Model(Dinov2Config(**sizes, mlp_ratio=2)).save_pretrained(tmp_path / "m")
    spec = {"size": {"height": 28, "width": 28}, "do_resize": True, "do_normalize": False, "do_rescale": True}
    spec |= {"rescale_factor": 1 / 255, "resample": 3, "image_processor_type": "BitImageProcessor"}
    (tmp_path / "m" / "preprocessor_config.json").write_text(json.dumps(spec))
    argv = ["--model", str(tmp_path / "m"), "--n-images", "2", "--n", "1"]
    status, result, _ = _run(capsys, tmp_path, *argv, "--target", "attn", "--out", str(tmp_path / "p"))
    assert status == 0
    assert "features" in result["measured_on"]
    assert result["loss_before"] == pytest.approx(0, abs=1e-6) != result["loss_after"]
    assert "accuracy_after" not in result
    assert load_model(tmp_path / "p", device="cpu").cfg.n_layers == 3
    status, _, errors = _run(capsys, tmp_path, *argv, "--target", "head")
    assert status == 2
    assert "needs a loss" in errors


BAD = {
    "more than there are": (["--target", "attn", "--n", "9"], "cannot drop 9 of 4"),
    "all attention": (["--target", "attn", "--n", "4"], "keep at least one"),
    "no such layer": (["--drop", "attn:7"], "layer 7 is out of range"),
    "no such head": (["--drop", "head:1.9"], "head 9"),
    "twice": (["--drop", "attn:1,1"], "twice"),
    "in whole and part": (["--drop", "attn:1", "block:1"], "name it once"),
    "unreadable": (["--drop", "attention:1"], "not understood"),
    "no number": (["--drop", "attn:x"], "'x'"),
    "no budget": (["--target", "attn"], "exactly one budget"),
    "two budgets": (["--target", "attn", "--n", "1", "--save-kv", "0.5"], "exactly one budget"),
    "no target": (["--n", "2"], "needs --target"),
    "both": (["--drop", "attn:1", "--target", "mlp", "--n", "1"], "not both"),
    "share": (["--target", "attn", "--save-kv", "2"], "between 0 and 1"),
    "heal nothing": (["--heal-steps", "5"], "needs a pruned model"),
    "judge nothing": (["--lm-eval", "attlas_ioi"], "needs a pruned model"),
    "limit alone": (["--drop", "attn:1", "--lm-eval-limit", "5"], "belong to --lm-eval"),
    "write nothing": (["--out", "OUT"], "nothing to write"),
    "not empty": (["--drop", "attn:1", "--out", "FULL"], "not empty"),
    "not ours": (["--drop", "attn:1", "--out", "FULL", "--force"], "was not written by attlas prune"),
    "here": (["--drop", "attn:1", "--out", "."], "current folder"),
    "no such model": (["--drop", "attn:1", "--model", "gpt9"], "no model"),
    "missing text": (["--drop", "attn:1", "--calibration", "nowhere.txt"], "nowhere.txt"),
    "short text": (["--drop", "attn:1", "--calibration", "SHORT"], "fewer than one sequence"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_status_2(capsys: pytest.CaptureFixture[str], tmp_path: Path, case: str) -> None:
    argv, message = BAD[case]
    (tmp_path / "FULL").mkdir()
    (tmp_path / "FULL" / "mine").write_text("keep")
    (tmp_path / "SHORT").write_text("Too short.")
    argv = [str(tmp_path / a) if a in ("OUT", "FULL", "SHORT") else a for a in argv]
    status, result, errors = _run(capsys, tmp_path, *argv, *SMALL)
    assert status == 2
    assert result == {}
    lines = [line for line in errors.splitlines() if line.strip()]
    assert message in lines[-1]
    assert sum(line.startswith("attlas prune:") for line in lines) == 1
    assert not (tmp_path / "OUT").exists()
    assert not (tmp_path / "w").exists()
    assert (tmp_path / "FULL" / "mine").read_text() == "keep"


def test_parse_drop() -> None:
    drop = Drop.parse(("attn:2,5", "head:0.4,1.2", "attn:0"))
    assert drop == Drop((2, 5, 0), heads=((0, 4), (1, 2)))
    assert drop.parts() == ("attn:2,5,0", "head:0.4,1.2")
    assert Drop.parse(drop.parts()) == drop
    assert drop.names() == ["attn.2", "attn.5", "attn.0", "head.0.4", "head.1.2"]
    with pytest.raises(ConfigError, match=r"layer\.head"):
        Drop.parse(("head:3",))
