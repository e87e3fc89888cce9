"""`lit-rlhf demo`: everything once, on a small world whose best policy is known."""

from pathlib import Path

from lit_rlhf.demo import run_demo


def demo(output: Path = Path("runs/demo"), seed: int = 0) -> None:
    """Run SFT, reward model and PPO on a synthetic world of short reviews; no network, two to five minutes on a CPU.

    Args:
        output: Directory for report.html, summary.json, metrics, samples and the trained models.
        seed: Of data, weights and rollouts.
    """
    run_demo(output, seed)
