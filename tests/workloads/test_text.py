from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import sklearn.datasets
import torch
from torchmetrics.functional.text import perplexity

from lrsearch.errors import DataError
from lrsearch.workloads._text import unigram_perplexity
from lrsearch.workloads.text import Text
from tests.processes import modules_after
from tests.workloads.contract import WorkloadContract, epoch, load, whole

WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "thé", "dog", "barked", "at", "birds", "while", "it", "rained"]


def write(path: Path, count: int = 900) -> Path:
    path.write_text(" ".join(np.random.default_rng(0).choice(WORDS, count)), encoding="utf-8")
    return path


def tokens(*parts: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Return all tokens of the sequences, one after another."""
    return torch.cat([torch.cat([inputs, targets[:, -1:]], 1).flatten() for inputs, targets in parts])


class TestText(WorkloadContract):
    @pytest.fixture
    def workload(self, tmp_path: Path) -> Text:
        return Text(path=write(tmp_path / "words.txt"), sequence_length=24, batch_size=8)

    def test_targets_are_the_bytes_that_follow(self, workload: Text) -> None:
        inputs, targets = whole(load(workload), "test")
        assert torch.equal(inputs[:, 1:], targets[:, :-1])
        assert workload.path is not None
        end = workload.path.read_bytes()
        cut = len(end) // 25 * 25
        assert bytes(tokens((inputs, targets)).tolist()) == end[cut - 25 * len(inputs) : cut]

    @pytest.mark.parametrize("seed", range(4))
    def test_the_splits_are_contiguous_stretches_of_the_text(self, workload: Text, seed: int) -> None:
        assert workload.path is not None
        text = workload.path.read_bytes()
        loaded = load(workload, seed, batch_size=1)
        validation, test = whole(loaded, "validation"), whole(loaded, "test")
        assert bytes(tokens(validation).tolist()) in text
        train = epoch(loaded)
        assert Counter(tokens(*train, validation, test).tolist()) == Counter(text[: len(text) // 25 * 25])

    def test_characters_are_numbered_as_far_as_the_text_has_them(self, workload: Text) -> None:
        assert workload.path is not None
        text = workload.path.read_text(encoding="utf-8")
        loaded = load(workload, tokens="characters")
        assert loaded.facts.class_count == len(set(text)) < 30
        letters = sorted(set(text))
        found = "".join(letters[token] for token in tokens(whole(loaded, "validation")).tolist())
        assert found in text
        assert "é" in letters

    def test_loss_and_perplexity_are_those_of_the_field(self, workload: Text) -> None:
        loaded = load(workload)
        inputs, targets = whole(loaded, "test")
        with torch.no_grad():
            outputs = loaded.build_model().eval()(inputs)
        assert outputs.shape == (*targets.shape, 256)
        assert loaded.metric(outputs, targets) == pytest.approx(float(perplexity(outputs, targets)), rel=1e-5)
        assert float(loaded.loss(outputs, targets)) == pytest.approx(math.log(loaded.metric(outputs, targets)))
        assert not loaded.facts.higher_is_better

    def test_one_badly_missed_token_has_a_finite_perplexity(self, workload: Text) -> None:
        outputs = torch.tensor([[[0.0, 110.0], [110.0, 0.0]]])
        assert load(workload).metric(outputs, torch.zeros(1, 2, dtype=torch.int64)) == pytest.approx(math.exp(55))

    def test_chance_is_what_answering_the_frequencies_gives(self, workload: Text) -> None:
        loaded = load(workload, batch_size=1)
        targets = torch.cat([targets for _, targets in epoch(loaded)])
        frequencies = torch.bincount(targets.flatten(), minlength=256) / targets.numel()
        outputs = frequencies.log().clamp(min=-1e4).expand(*targets.shape, 256)
        assert loaded.metric(outputs, targets) == pytest.approx(loaded.facts.chance, rel=1e-4)

    @pytest.mark.parametrize("model", ["gru", "transformer"])
    def test_no_model_sees_what_it_is_to_predict(self, workload: Text, model: str) -> None:
        net = load(workload, model=model).build_model()
        inputs = torch.randint(256, (2, 24), generator=torch.Generator().manual_seed(0))
        changed = inputs.clone()
        changed[:, 7:] = (changed[:, 7:] + 1) % 256
        for training in (True, False):
            net.train(training)
            with torch.no_grad():
                before, after = net(inputs), net(changed)
            torch.testing.assert_close(before[:, :7], after[:, :7])
            assert not torch.allclose(before[:, 7], after[:, 7])


def test_without_a_path_the_text_is_scikit_learns_descriptions_in_the_order_of_their_names() -> None:
    folder = Path(sklearn.datasets.__file__).parent / "descr"
    text = b"\n".join((folder / name).read_bytes() for name in sorted(path.name for path in folder.glob("*.rst")))
    loaded = load(Text())
    inputs, targets = whole(loaded, "validation")
    assert bytes(tokens((inputs, targets)).tolist()) in text
    facts = loaded.facts
    assert facts.train_count + facts.validation_count + facts.test_count == len(text) // 65
    assert facts.description.startswith("data set descriptions of scikit-learn, ")


def test_scikit_learn_is_not_imported_for_its_descriptions() -> None:
    loaded = modules_after(
        "import torch\nfrom lrsearch.workloads.text import Text\nText().load(torch.device('cpu'), 0)"
    )
    assert "torch" in loaded
    assert "sklearn" not in loaded


def test_a_text_that_cannot_be_used_says_why(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none.txt cannot be read .*point workload.path at a text file"):
        load(Text(path=tmp_path / "none.txt"))
    (tmp_path / "short.txt").write_text("short")
    with pytest.raises(DataError, match=r"has 5 tokens, but .* need 195: give a longer text"):
        load(Text(path=tmp_path / "short.txt"))
    with pytest.raises(DataError, match=r"^The built-in text has \d+ tokens, but .* lower workload.sequence_length"):
        load(Text(sequence_length=100_000))
    (tmp_path / "latin.txt").write_bytes("é".encode("latin-1") * 500)
    with pytest.raises(DataError, match=r"is not UTF-8 \(byte 0\): convert it, or set workload.tokens to bytes"):
        load(Text(path=tmp_path / "latin.txt", tokens="characters"))


def test_the_unigram_perplexity_of_a_coin_is_two() -> None:
    assert unigram_perplexity(torch.tensor([[0, 1], [1, 0]])) == pytest.approx(2.0)
