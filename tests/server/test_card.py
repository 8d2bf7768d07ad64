"""A model card says what the statement says, and what others named cannot write in it."""

from __future__ import annotations

from common.data.schema import Column, Schema
from common.lineage import Comparison, Step, Used
from server.release.card import model_card
from server.release.release import LIMITS

CLAIMS = {
    "plan": "ab" * 32, "rounds": 5, "simulated": False, "epsilon": "2.5", "delta": "1e-05",
    "unit": "record", "adjacency": "add-or-remove-one", "trust": "local", "clients": 4,
    "noise": ["cryptographic"], "accountants": {"pld": "2.5", "rdp": "2.75"}, "limits": [*LIMITS],
}  # fmt: skip
IMAGES = Schema("image", (1, 28, 28), tuple("0123456789"), lower=0.0, upper=255.0)
STEP = Step(
    "prune",
    "1" * 64,
    "2" * 64,
    Used("public", "some | pictures", "3" * 64, 500, 501),
    Comparison(0.99, 0.25, (0.9, 0.895), (4000, 1000), (20.0, 10.0), "a machine"),
    {"fraction": "0.5"},
)


def test_it_says_what_was_spent_and_how_the_model_was_made() -> None:
    card = model_card("clothes", 3, "classification", IMAGES, CLAIMS, (STEP,))
    for words in (
        "# clothes, version 3",
        "| epsilon | 2.500 |",
        "| delta | 1e-05 |",
        "| took part | 4 holders of data |",
        "pld: 2.500; rdp: 2.750",
        "Pruned of whole channels, and fine-tuned (fraction 0.5), with 500 records declared public",
        "| prune | 90.00 % to 89.50 % | 99.00 % | 0.25 | 4000 to 1000 | 20 to 10 |",
        "Measured on 501 records",
        *LIMITS,
    ):
        assert words in card
    assert "Simulated" not in card


def test_it_says_that_a_model_is_simulated_and_what_is_not_stated() -> None:
    claims = {**CLAIMS, "simulated": True, "noise": ["simulated"]}
    del claims["clients"]
    card = model_card("clothes", 1, "classification", IMAGES, claims, ())
    assert "**Simulated.**" in card
    assert "| took part | not stated |" in card
    assert "Accuracy: not stated." in card


def test_names_cannot_become_markup() -> None:
    hostile = "<script>|\n# [x](y)`"
    schema = Schema(
        "table", (1,), (hostile, "b"), (Column(hostile, 0.0, 1.0),), target="c"
    )  # fmt: skip
    card = model_card("m", 1, "classification", schema, CLAIMS, ())
    for line in card.splitlines():
        assert "<script>" not in line.replace("\\<script\\>", "")
        assert "](" not in line.replace("\\]\\(", "")
    assert not any(line.startswith("# [") for line in card.splitlines())
