"""The mutants of `make mutations` apply to the package as it is."""

from lit_rlhf.verify import all_cases
from tests.mutations import MODULES, ROOT, mutants


def test_every_mutant_applies_and_names_what_kills_it() -> None:
    """A text that a refactoring moved, or a row that was renamed, would else be found out by the slow run alone."""
    found = list(mutants(ROOT / "lit_rlhf"))
    assert len(found) > 200
    for mutant in found:
        source = (ROOT / "lit_rlhf" / mutant.file).read_text(encoding="utf-8")
        assert mutant.source != source, mutant.mutation
        assert mutant.tests, mutant.mutation
        compile(mutant.source, mutant.file, "exec")
        for test in mutant.tests:
            path, _, row = test.partition("::")
            assert (ROOT / path).is_file(), test
            assert not row or row.partition("[")[2].removesuffix("]") in all_cases(), test
    changes = [(mutant.file, mutant.source) for mutant in found if mutant.function == "module"]
    assert len(set(changes)) == len(changes) == MODULES.read_text().count("[[mutant]]")
