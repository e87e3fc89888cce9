"""Judges: language models that say which of two answers is better, or how good one is."""

from lit_rlhf.judges.base import Assessment as Assessment, Judge as Judge, Tally as Tally
from lit_rlhf.judges.endpoint import EndpointJudge as EndpointJudge
from lit_rlhf.judges.local import LocalJudge as LocalJudge
from lit_rlhf.judges.pairwise import Opinion as Opinion, PairwiseJudge as PairwiseJudge
from lit_rlhf.judges.templates import Template as Template, render as render, write_out as write_out
from lit_rlhf.judges.verdicts import Verdict as Verdict
