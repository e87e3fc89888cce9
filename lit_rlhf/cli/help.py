"""Help of the training commands: their usage, and the classes that a configuration can name."""

from collections.abc import Iterator

from lit_rlhf.cli.shipped import RECIPES, SCORED
from lit_rlhf.cli.unloaded import described_classes

TRAINING = """usage: lit-rlhf {command} -c FILE [-c OVERLAY ...] [--key value ...]

{what}. A run is described by YAML files, merged from left to right; options on the command line win over files.

options:
  -c, --config FILE             a configuration, or the name of a shipped one, which `lit-rlhf init` lists
  --model CLASS                 what is trained, and how          options of a class: --model.help CLASS
  --model.init_args.KEY VALUE   (also --model.KEY VALUE)
  --data CLASS                  where the data come from          options of a class: --data.help CLASS
  --data.init_args.KEY VALUE    (also --data.KEY VALUE)
  --trainer.KEY VALUE           Lightning's Trainer: devices, strategy, precision, max_epochs, ...
  --run_dir DIR                 where all that the run writes goes
  --ckpt_path PATH|last         go on from a checkpoint; options given here hold, those in the checkpoint don't
  --seed_everything SEED        seed of Lightning's global generators (the library's own draws use --model.seed)
  --seeds SEED [SEED ...]       fit: a run for each seed in RUN_DIR/seed-N, their mean, spread and report; again goes on
  --log_json                    fit: metrics as JSON lines on standard output, all else on standard error
  --profile                     fit: time, tokens and utilisation by phase, the slowest operators; see docs/PROFILING.md
  --overwrite                   predict: replace the predictions.jsonl that is in RUN_DIR already
  --print_config                print the whole configuration and stop
  --help-all                    every option of the Trainer ({command} takes a few seconds to list them)
"""


PARTS = """Losses, formats and other parts of these: the help of a class lists what each of its options takes, and

  lit-rlhf {command} --model PreferenceModule --model.loss.help DPO
  lit-rlhf {command} --data PreferenceDataModule --data.format.help ExplicitPrompt

show the options of a part. Classes of your own are named module.Class, found in the current directory and on
PYTHONPATH.
"""


RECIPE = """usage: lit-rlhf {command} --model MODEL --data DATA {reward}[options of lit-rlhf fit]

{what}.

  --model MODEL    directory or hub id: model and tokenizer          (model.backbone.name, data.tokenizer)
  --data DATA      a file, a directory of save_to_disk, or a hub id  (data.train)
{scored}
It is `lit-rlhf fit -c {config}` with these options and all that follow.
The run begins with the line that it stands for. --seeds 0 1 2 trains once for each seed, and reports mean and spread.
--print_config prints the whole YAML and stops; `lit-rlhf init {command}` prints the configuration with its comments.
"""
_SCORED = (
    "  --reward REWARD  an export or a checkpoint of a reward model       (model.reward.path),\n"
    "                   or a class such as LengthReward or mine.Reward    (model.reward)\n"
)


def recipe_help(command: str, what: str) -> Iterator[str]:
    """Help of a command that trains in one line."""
    scored = command in SCORED
    yield RECIPE.format(
        command=command,
        what=what,
        config=RECIPES[command],
        reward="--reward REWARD " if scored else "",
        scored=_SCORED if scored else "",
    )


def training_help(command: str, what: str) -> Iterator[str]:
    """Help of a training command, in parts: usage, and the classes that YAML can name."""
    yield TRAINING.format(command=command, what=what)
    for title, package, suffix in (
        ("models", "modules", "Module"),
        ("data", "data", "DataModule"),
        ("rewards", "rewards", ""),
        ("rollout engines", "rollout", "Engine"),
        ("callbacks and plugins", "callbacks", ""),
    ):
        rows = [(name, text) for name, text in described_classes(package) if name.endswith(suffix)]
        width = max(len(name) for name, _ in rows)
        yield "\n".join([f"{title}:", *(f"  {name:<{width}}  {text}" for name, text in rows), ""])
    yield PARTS.format(command=command)
