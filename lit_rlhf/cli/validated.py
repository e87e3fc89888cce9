"""The report of `evaluate-reward`, of what `lit-rlhf validate` has just validated."""

from dataclasses import replace
from pathlib import Path

from lightning.pytorch import LightningDataModule, LightningModule, Trainer

from lit_rlhf.cli.output import print_text
from lit_rlhf.data import BranchedDataModule, Mixture
from lit_rlhf.data.conversion import SUBSET
from lit_rlhf.modules import RewardModelModule
from lit_rlhf.objectives import HeadEnsemble


def report_validated(
    trainer: Trainer, module: LightningModule, data: LightningDataModule, command: str
) -> None:
    """Write `reward.html` into the run's directory, where a reward model was validated on rows that name subsets.

    Rows are read anew, whole: the data's limits of length don't hold here. What can't be reported so is said, and so is
    what fails: the validation has been done by then, and stands.

    Args:
        trainer: Which validated.
        module: The reward model.
        data: Its pairs or rankings.
        command: For the page.
    """
    if not isinstance(module, RewardModelModule) or not isinstance(data, BranchedDataModule):
        return
    rows, objective = data.rows["val"], module.objective
    if SUBSET not in rows.columns or data.shape.completions[0] < 2 or objective.by_step:
        return
    name = "train" if data.sources["val"] is None else "val"
    source = data.sources[name]
    own = type(data).records is not BranchedDataModule.records
    limit = trainer.limit_val_batches
    part = isinstance(limit, int) or limit != 1.0 or trainer.world_size > 1  # 1 is one batch
    if source is None or own or isinstance(source, Mixture) or part:
        if trainer.is_global_zero:
            print_text(
                "No page by subset: it is of one process, of all batches, and of one source that is read by a format. "
                "Give `lit-rlhf evaluate-reward` the checkpoint.\n"
            )
        return
    from lit_rlhf.evaluation import (  # noqa: PLC0415  (start-up that training shall not pay)
        ModelScorer,
        evaluate_reward,
        read_comparisons,
    )
    from lit_rlhf.report.reward_page import report_reward  # noqa: PLC0415  (see above)

    try:
        comparisons = read_comparisons(source, data.format_of(name))
        held_out = {rows[place]["row"] for place in range(len(rows))}
        comparisons = replace(
            comparisons, items=[i for i in comparisons.items if i.row in held_out]
        )
        alike = len(objective.heads) == 1 or isinstance(objective, HeadEnsemble)
        scorer = ModelScorer(
            module.backbone.to(trainer.strategy.root_device),
            "the model",
            learned=data.prompt_form("val"),
            heads=objective.heads,
            reward=None if alike else objective.reward,
        )
        found = evaluate_reward(scorer, comparisons)
        page = Path(trainer.default_root_dir) / "reward.html"
        print_text(f"{report_reward([found], page, command=command)}\n")
    except Exception as error:  # noqa: BLE001 - memory and disk too; whatever it is, the numbers above are right
        print_text(f"No page by subset: {' '.join(str(error).split()) or type(error).__name__}\n")
