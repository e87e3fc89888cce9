"""What became of the rows of a source: counts by reason, and when they end the run."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from lightning.pytorch.utilities import rank_zero_only

from lit_rlhf.data.records import InvalidRowError, LabelError, Text
from lit_rlhf.errors import DataError

InvalidPolicy = Literal["drop", "error"]
LengthPolicy = Literal["drop", "truncate", "truncate_prompt", "error"]
PromptCut = Literal["start", "end"]

_log = logging.getLogger(__name__)


@dataclass
class Reason:
    """How many were left out for a reason, the first of them, and the option that says what happens then."""

    count: int
    first: str
    option: str
    label: bool = False  # it is the label that can't be read


@dataclass
class Report:
    """What became of the rows of a source.

    Counts are of records: where a format makes several of a row, each is used or left out by itself, and a row that
    gives none counts as one that is left out. So `records` and the counts add up to all there is.

    Args:
        source: What messages call it.
        unit: What a record is called, in the plural.
        rows: Rows read.
        records: Records used.
        reasons: Those left out, by reason.
        optional: How many records have an optional field, by its name.
        columns: The further columns of all records.
        labels: How many records have a label, by its value.
        chats: How many records have messages for a prompt.
        systems: Their different system turns, "" for none; two at most.
        truncated: How many records had their prompt or an answer cut to a limit, by which of these.
        cut_prompts: Conversations whose prompt the chat template renders otherwise once an answer follows.
        longest_prompt: In tokens.
        longest_completion: In tokens.
        refuses: Options by which records, where there are any, end the run (see `lit_rlhf.data.repeats`).
    """

    source: str
    unit: str = "records"
    rows: int = 0
    records: int = 0
    reasons: dict[str, Reason] = field(default_factory=dict)
    optional: dict[str, int] = field(default_factory=dict)
    columns: list[str] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    chats: int = 0
    systems: list[str] = field(default_factory=list)
    truncated: dict[str, int] = field(default_factory=dict)
    cut_prompts: int = 0
    longest_prompt: int = 0
    longest_completion: int = 0
    refuses: list[str] = field(default_factory=list)

    def leave_out(self, where: str, error: InvalidRowError) -> None:
        """Count one."""
        label = isinstance(error, LabelError)
        first = Reason(0, f"{where}: {error.detail}", error.option, label)
        self.reasons.setdefault(error.reason, first).count += 1

    def count_prompt(self, prompt: Text) -> None:
        """Count how a prompt is written."""
        if isinstance(prompt, str):
            return
        self.chats += 1
        system = str(prompt[0]["content"]) if prompt[0]["role"] in ("system", "developer") else ""
        if len(self.systems) < 2 and system not in self.systems:
            self.systems.append(system)

    @property
    def counts(self) -> dict[str, int]:
        """Records left out, by reason."""
        return {name: reason.count for name, reason in self.reasons.items()}

    def brief(self) -> str:
        """What was used, how many were left out by reason, and how many were cut."""
        left_out = [f"{count} left out, {name}" for name, count in self.counts.items()]
        return "; ".join([self._used(), *left_out, *self._cut()])

    def _cut(self) -> list[str]:
        return [
            f"{count} {self.unit} have their {what} cut" for what, count in self.truncated.items()
        ]

    def _used(self) -> str:
        total = self.records + sum(self.counts.values())
        unit = "rows" if total == self.rows else f"{self.unit} of {self.rows} rows"
        return f"{self.source}: {self.records} of {total} {unit} used"

    def summary(self) -> str:
        """The report in one line per reason."""
        lines = [self._used()]
        lines += [
            f"{reason.count} left out, {name} (first: {reason.first})"
            for name, reason in self.reasons.items()
        ]
        lines += [
            f"{self.records - count} have no {name}, {OPTIONAL_FIELDS[name]:g} is taken"
            for name, count in self.optional.items()
            if count < self.records
        ]
        lines += self._cut()
        if self.cut_prompts:
            lines.append(
                f"{self.cut_prompts} prompts are cut to what the chat template renders alike with and without an "
                "answer; rollouts from them would begin with other tokens"
            )
        return "; ".join(lines)

    def judge(self, invalid: InvalidPolicy, too_long: LengthPolicy, max_invalid: float) -> None:
        """End the run where more was left out than the options allow.

        Args:
            invalid: Whether records that can't be used may be left out.
            too_long: The same for those over the length limits.
            max_invalid: The share of records that can't be used that may be left out.

        Raises:
            DataError: They may not, nothing is left, or of the labels one class alone is left.
        """
        policies = {
            "invalid": invalid,
            "too_long": too_long,
            **dict.fromkeys(self.refuses, "error"),
        }
        left = {reason.option for reason in self.reasons.values()}
        refused = sorted(option for option in left if policies.get(option) == "error")
        if refused:
            ways = {"invalid": "invalid: drop", "too_long": "too_long: drop or too_long: truncate"}
            hint = " and ".join(ways.get(o, f"repeats.{o}: drop or keep") for o in refused)
            raise DataError(f"{self.summary()}. Mend the rows, or set {hint}.")
        way = "mend the rows, the `format` or the limits"
        if self.reasons and all(name.startswith("no column") for name in self.reasons):
            way = "name the data's columns in the options of `format`, or take another format"
        if self.records == 0:
            raise DataError(f"{self.summary()}. Nothing is left: {way}.")
        unusable = sum(r.count for r in self.reasons.values() if r.option == "invalid")
        share = unusable / (self.records + unusable)
        if share > max_invalid:
            raise DataError(
                f"{self.summary()}. {share:.0%} can't be used, more than max_invalid ({max_invalid:.0%}) allows: "
                f"{way}, or raise max_invalid if this is what the data are like."
            )
        if len(self.labels) == 1 and any(reason.label for reason in self.reasons.values()):
            raise DataError(
                f"{self.summary()}. All labels that could be read are {next(iter(self.labels))}, "
                "so one class is left out: "
                "labels are true or false, 1 or 0, or 1 or -1. Write them so, or give numbers as the option `score`."
            )

    @classmethod
    def of_all(cls, reports: Sequence["Report"]) -> "Report":
        """One report of several sources, itself of one; `source` says how much each gave."""
        if len(reports) == 1:
            return reports[0]
        whole = cls(
            " + ".join(f"{r.source} ({r.records} {r.unit})" for r in reports),
            reports[0].unit,
            refuses=reports[0].refuses,
        )
        for report in reports:
            for name, reason in report.reasons.items():
                whole.reasons.setdefault(name, replace(reason, count=0)).count += reason.count
            for mine, theirs in (
                (whole.optional, report.optional),
                (whole.labels, report.labels),
                (whole.truncated, report.truncated),
            ):
                for name, count in theirs.items():
                    mine[name] = mine.get(name, 0) + count
            whole.rows += report.rows
            whole.records += report.records
            whole.chats += report.chats
            whole.cut_prompts += report.cut_prompts
            whole.columns = sorted({*whole.columns, *report.columns})
            whole.systems = [*dict.fromkeys([*whole.systems, *report.systems])][:2]
            whole.longest_prompt = max(whole.longest_prompt, report.longest_prompt)
            whole.longest_completion = max(whole.longest_completion, report.longest_completion)
        return whole

    def to_json(self) -> dict[str, Any]:
        """Plain values, for the cache."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any], source: str) -> "Report":
        """The inverse of `to_json`.

        Args:
            values: What it gave.
            source: What the source is called now: rows in the cache may come from a file that lay elsewhere.
        """
        before = values["source"]
        reasons = {name: Reason(**reason) for name, reason in values["reasons"].items()}
        for reason in reasons.values():
            if reason.first.startswith(before):
                reason.first = source + reason.first.removeprefix(before)
        return cls(**{**values, "reasons": reasons, "source": source})


OPTIONAL_FIELDS = {"margin": 0.0, "p_chosen": 1.0}
"""Fields that only some records have, and the value that says nothing beyond the order of the pair."""


def required_fields(fields: Mapping[str, Any], answers: int) -> list[str]:
    """What all records of a batch must have alike: their fields but for optional ones, and how many attributes.

    Args:
        fields: Of a record.
        answers: How many completions it has.
    """
    count = len(fields.get("attributes", ())) // max(answers, 1)
    named = {name: f"{count} attributes" if name == "attributes" else name for name in fields}
    return sorted(each for name, each in named.items() if name not in OPTIONAL_FIELDS)


@rank_zero_only
def say(report: Report) -> None:
    """Log a report, as a warning where something was left out."""
    notable = report.reasons or report.truncated or report.cut_prompts
    level = logging.WARNING if notable else logging.INFO
    _log.log(level, "%s", report.summary())
