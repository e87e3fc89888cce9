"""Results as tables."""

from collections.abc import Mapping
from typing import Any

from benchmarks.markdown import table


def tables(results: Mapping[str, Any]) -> str:
    """All tables of a comparison."""
    workloads = results["workloads"].items()
    parts = [
        _about(results),
        table(_COMPARISON, [_comparison(name, entry) for name, entry in workloads]),
    ]
    used = [row for name, entry in workloads for row in _utilisation(name, entry)]
    if used:
        parts += [
            f"Share of the {results['machine']['dtype']} matrix-product peak that lit_rlhf reaches:",
            table(_UTILISATION, used),
        ]
    parts += [
        "Same work:",
        table(_PARITY, [_parity(name, entry["parity"]) for name, entry in workloads]),
    ]
    return "\n\n".join(parts) + "\n"


_COMPARISON = (
    "workload", "peer", "peer's", "ours", "ratio (least to most of a pair)", "goal",
    "peak GB, peer's", "ours", "ratio", "goal",
)  # fmt: skip
_UTILISATION = ("workload", "phase", "GFLOP a step", "seconds a step", "GFLOP/s", "share of peak")
_PARITY = ("workload", "compared", "result", "agree")


def _about(results: Mapping[str, Any]) -> str:
    machine = results["machine"]
    peaks = ", ".join(f"{name} {value:.0f}" for name, value in machine["matmul_gflops"].items())
    threads = "1 thread" if machine["threads"] == 1 else f"{machine['threads']} threads"
    pairs = "1 pair" if results["pairs"] == 1 else f"{results['pairs']} pairs"
    about = (
        f"{machine['cpu']}; {machine['cores']} cores, {threads}, {machine['memory_gigabytes']} GB. "
        f"Weights in {machine['dtype']}, which this CPU multiplies. "
        f"Matrix product, GFLOP/s: {peaks}. {pairs} of runs{', quick settings' if results['quick'] else ''}; "
        f"{results['seconds']['runs'] / 60:.0f} minutes."
    )
    lines = [about, ""]
    for name, versions in results["versions"].items():
        lines.append(
            f"- {name}: {', '.join(f'{package} {version}' for package, version in versions.items())}"
        )
    return "\n".join(lines)


def _comparison(name: str, entry: Mapping[str, Any]) -> list[str]:
    goals, ours, peer = entry["goals"], entry["ours"], entry["peer"]
    least, most = entry["throughput_ratio_range"]
    return [
        f"`{name}`, {entry['unit']}",
        peer["name"],
        _spread(peer["samples_per_second"]),
        _spread(ours["samples_per_second"]),
        f"**{entry['throughput_ratio']:.2f}** ({least:.2f} to {most:.2f})",
        f"{goals['throughput_ratio']:g}" if "throughput_ratio" in goals else "",
        f"{peer['peak_gigabytes']['median']:.2f}",
        f"{ours['peak_gigabytes']['median']:.2f}",
        f"**{entry['memory_ratio']:.2f}**",
        f"{goals['memory_ratio']:g}" if "memory_ratio" in goals else "",
    ]


def _utilisation(name: str, entry: Mapping[str, Any]) -> list[list[str]]:
    return [
        [
            f"`{name}`",
            phase,
            f"{used['gflop_per_step']:.0f}",
            f"{used['seconds_per_step']['median']:.2f}",
            f"{used['gflops_per_second']['median']:.0f}",
            _spread(used["share_of_peak"]),
        ]
        for phase, used in entry["utilisation"].items()
    ]


def _parity(name: str, check: Mapping[str, Any]) -> list[str]:
    if check["kind"].startswith("loss curves") and "worst" in check:
        text = (
            f"{check['dtype']}: largest difference {check['worst']:.2g}, tolerance {check['tolerance']:g}; "
            f"{len(check['ours'])} steps"
        )
        if "timed" in check:
            timed = check["timed"]
            text += f" ({timed['dtype']}, as timed: {timed['worst']:.2g}, at most {timed['tolerance']:g})"
    elif check["kind"] == "rewards" and "our_mean" in check:
        text = (
            f"ours {check['our_mean']:.3f}, peer's {check['peer_mean']:.3f} ± {check['peer_deviation']:.3f}; "
            f"second half of {len(check['ours'])} steps"
        )
    elif check["kind"] == "generations":
        text = (
            f"regret {check['our_regret']:.4f} and {check['peer_regret']:.4f} nats, at most "
            f"{check['most_regret']:g}; mean length "
            f"{check['our_mean_length']:.1f} and {check['peer_mean_length']:.1f} (difference ± "
            f"{check['length_error']:.1f})"
        )
    else:
        text = f"{len(check['ours'])} and {len(check['peer'])} steps"
    agree = {True: "yes", False: "**no**", None: "not judged"}[check["ok"]]
    return [f"`{name}`", str(check["kind"]), text, agree]


def _spread(values: Mapping[str, float]) -> str:
    median, least, most = (f"{values[name]:.3g}" for name in ("median", "min", "max"))
    return median if least == most else f"{median} ({least} to {most})"
