"""The report: one HTML file with everything in it."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from lit_rlhf import __version__
from lit_rlhf.demo import plots
from lit_rlhf.demo.config import DemoConfig
from lit_rlhf.demo.results import curves, examples, judge, reliability
from lit_rlhf.demo.stages import PolicyResult, RewardResult
from lit_rlhf.files import write_text


def write_report(
    path: Path,
    summary: dict[str, Any],
    reward: RewardResult,
    policy: PolicyResult,
    config: DemoConfig,
) -> Path:
    """Write the report.

    Args:
        path: The HTML file.
        summary: The numbers.
        reward: Result of the second stage.
        policy: Result of the third.
        config: What was run.

    Returns:
        The file.
    """
    world = config.world.world
    before, after = judge(policy.before, world), judge(policy.after, world)
    lines = curves(policy, world)
    drawings = {
        "reward_and_kl": plots.reward_and_kl(lines["proxy"], lines["kl"]),
        "gold_and_proxy": plots.gold_and_proxy(
            lines["gold"], lines["proxy"], summary["ppo"]["gold_max"]
        ),
        "scatter": plots.gold_against_proxy(
            [("initial policy", before.proxy, before.gold), ("after PPO", after.proxy, after.gold)]
        ),
        "calibration": plots.calibration(reliability(reward.margins)),
    }
    environment = Environment(
        loader=PackageLoader("lit_rlhf.demo"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("report.html.j2").render(
        version=__version__,
        summary=summary,
        config=config,
        plots={name: Markup(svg) for name, svg in drawings.items()},  # noqa: S704  (drawn here, from numbers)
        examples=examples(before, after, 8),
    )
    write_text(path, page, "The report")
    return path
