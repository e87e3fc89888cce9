"""The contract, for each DataModule; and what each does beside it."""

from typing import Any, ClassVar

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from lit_rlhf.data import (
    DemonstrationDataModule,
    ExplicitPrompt,
    PairsFromRanking,
    PreferenceDataModule,
    PromptDataModule,
    Ranked,
    RankedDataModule,
    RowsSource,
    UnpairedDataModule,
    UnpairedFromPairs,
)
from tests.unit.data.contract import ANSWERS, PROMPTS, DataModuleContract, indices, ready

ROWS = [(prompt, n) for n, prompt in enumerate([*PROMPTS, *PROMPTS[:6]])]


class TestPreferenceDataModule(DataModuleContract):
    kind = PreferenceDataModule
    dtypes: ClassVar[dict[str, torch.dtype]] = {"margin": torch.float32, "p_chosen": torch.float32}

    def raw_rows(self) -> list[dict[str, Any]]:
        return [
            {
                "prompt": p,
                "chosen": ANSWERS[n % 5],
                "rejected": ANSWERS[(n + 1) % 5],
                "margin": n / 2,
                "p_chosen": n / 40,
            }
            for p, n in ROWS
        ]

    def completions(self, row: dict[str, Any]) -> list[str]:
        return [row["chosen"], row["rejected"]]

    def test_margins_and_soft_labels_go_with_their_rows(
        self, tokenizer: PreTrainedTokenizerFast
    ) -> None:
        module = ready(
            PreferenceDataModule(RowsSource(self.raw_rows()), tokenizer=tokenizer, batch_size=5)
        )
        for batch in module.train_dataloader():
            torch.testing.assert_close(batch["margin"], batch["index"] / 2)
            torch.testing.assert_close(batch["p_chosen"], batch["index"] / 40)

    def test_without_the_columns_the_keys_are_absent(
        self, tokenizer: PreTrainedTokenizerFast
    ) -> None:
        plain = ExplicitPrompt(margin=None, p_chosen=None)
        module = ready(
            PreferenceDataModule(RowsSource(self.raw_rows()), tokenizer=tokenizer, format=plain)
        )
        assert {"margin", "p_chosen"}.isdisjoint(next(iter(module.train_dataloader())))

    def test_rankings_become_pairs(self, tokenizer: PreTrainedTokenizerFast) -> None:
        source = RowsSource(
            [{"prompt": "p:", "completions": ["a", "b", "c"], "scores": [1.0, 3.0, 1.0]}]
        )
        module = PreferenceDataModule(
            source, tokenizer=tokenizer, format=PairsFromRanking(Ranked()), batch_size=2
        )
        batch = next(iter(ready(module).train_dataloader()))
        assert batch["margin"].tolist() == [2.0, 2.0]
        first = batch["input_ids"][batch["branch_ids"] == 1]
        assert tokenizer.decode(first) == "b<eos>b<eos>"


class TestDemonstrationDataModule(DataModuleContract):
    kind = DemonstrationDataModule
    dtypes: ClassVar[dict[str, torch.dtype]] = {}

    def raw_rows(self) -> list[dict[str, Any]]:
        return [{"prompt": p, "completion": ANSWERS[n % 5]} for p, n in ROWS]

    def completions(self, row: dict[str, Any]) -> list[str]:
        return [row["completion"]]


class TestPromptDataModule(DataModuleContract):
    kind = PromptDataModule
    dtypes: ClassVar[dict[str, torch.dtype]] = {}

    def raw_rows(self) -> list[dict[str, Any]]:
        return [{"prompt": p, "answer": n, "topics": [str(n), None]} for p, n in ROWS]

    def completions(self, row: dict[str, Any]) -> list[str]:
        return []

    def test_columns_go_with_their_rows(self, tokenizer: PreTrainedTokenizerFast) -> None:
        module = ready(PromptDataModule(RowsSource(self.raw_rows()), tokenizer=tokenizer))
        for batch in module.train_dataloader():
            rows = batch["index"].tolist()
            assert batch["columns"] == {
                "answer": rows,
                "topics": [[str(row), None] for row in rows],
            }

    def test_rows_are_not_sorted_by_length_unless_asked_for(
        self, tokenizer: PreTrainedTokenizerFast
    ) -> None:
        source = RowsSource(self.raw_rows())
        plain, sorted_ = (
            PromptDataModule(source, tokenizer=tokenizer, bucket_batches=b) for b in (None, 50)
        )
        assert indices(ready(plain).train_dataloader()) != indices(
            ready(sorted_).train_dataloader()
        )


class TestRankedDataModule(DataModuleContract):
    kind = RankedDataModule
    dtypes: ClassVar[dict[str, torch.dtype]] = {"score": torch.float32, "branch_mask": torch.bool}

    def raw_rows(self) -> list[dict[str, Any]]:
        sizes = [2 + n % 3 for _, n in ROWS]
        return [
            {"prompt": p, "completions": ANSWERS[:size], "scores": [n + k / 4 for k in range(size)]}
            for (p, n), size in zip(ROWS, sizes, strict=True)
        ]

    def completions(self, row: dict[str, Any]) -> list[str]:
        return list(row["completions"])

    def test_scores_stand_by_their_branches_and_missing_branches_are_masked(
        self, tokenizer: PreTrainedTokenizerFast
    ) -> None:
        module = ready(
            RankedDataModule(RowsSource(self.raw_rows()), tokenizer=tokenizer, batch_size=6)
        )
        for batch in module.train_dataloader():
            for line, index in enumerate(batch["index"].tolist()):
                size = 2 + index % 3
                assert batch["score"][line].tolist()[:size] == [index + k / 4 for k in range(size)]
                assert batch["branch_mask"][line].tolist() == [
                    k < size for k in range(batch["score"].shape[1])
                ]
                assert batch["branch_ids"][line].max() == size


class TestUnpairedDataModule(DataModuleContract):
    kind = UnpairedDataModule
    dtypes: ClassVar[dict[str, torch.dtype]] = {"label": torch.bool}

    def raw_rows(self) -> list[dict[str, Any]]:
        return [{"prompt": p, "completion": ANSWERS[n % 5], "label": n % 3 == 0} for p, n in ROWS]

    def completions(self, row: dict[str, Any]) -> list[str]:
        return [row["completion"]]

    def test_labels_go_with_their_rows(self, tokenizer: PreTrainedTokenizerFast) -> None:
        module = ready(UnpairedDataModule(RowsSource(self.raw_rows()), tokenizer=tokenizer))
        for batch in module.train_dataloader():
            assert batch["label"].tolist() == [index % 3 == 0 for index in batch["index"].tolist()]

    def test_pairs_become_single_examples(self, tokenizer: PreTrainedTokenizerFast) -> None:
        source = RowsSource([{"prompt": "p:", "chosen": "a", "rejected": "b"}])
        module = UnpairedDataModule(
            source,
            tokenizer=tokenizer,
            format=UnpairedFromPairs(ExplicitPrompt()),
            batch_size=2,
            bucket_batches=1,
        )
        batch = next(iter(ready(module).train_dataloader()))
        texts = {
            tokenizer.decode(ids[1:3]): label
            for ids, label in zip(batch["input_ids"], batch["label"].tolist(), strict=True)
        }
        assert len(texts) == 2
        for line in range(2):
            branch = batch["input_ids"][line][batch["branch_ids"][line] == 1]
            assert tokenizer.decode(branch) == ("a<eos>" if batch["label"][line] else "b<eos>")


@pytest.mark.parametrize(
    "kind", [PreferenceDataModule, DemonstrationDataModule, RankedDataModule, UnpairedDataModule]
)
def test_hyperparameters_are_plain_values(kind: type, tokenizer: PreTrainedTokenizerFast) -> None:
    module = kind(RowsSource([{"prompt": "p"}]), tokenizer=tokenizer)
    assert all(isinstance(value, int | float | str | None) for value in module.hparams.values())
    assert module.hparams["batch_size"] == 8
