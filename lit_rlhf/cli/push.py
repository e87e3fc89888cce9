"""`lit-rlhf push`: an export as a repository of the hub, with a model card."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi, get_token
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from lit_rlhf.cli.functions import SWITCH, Special
from lit_rlhf.cli.output import print_text
from lit_rlhf.errors import ConfigurationError, ServiceError
from lit_rlhf.models.cards import RECORD, ExportRecord, model_card, read_record, recorded_prompts
from lit_rlhf.report.curves import Group, spreads
from lit_rlhf.report.page import format_cell
from lit_rlhf.report.runs import Run, read_runs

_ADAPTER = "adapter_config.json"
_CLIENT_ERRORS: Any = HfHubHTTPError.__bases__
"""Of the hub's client where no answer comes: those of the httpx that it has, which differs by its version; OSError."""
_STATUS = {
    401: "the token isn't valid (any more): `hf auth login` makes another",
    403: "the token has no right to write there: take one with the role `write`, or a repository of your own",
    404: "there is no such user or organization",
    409: "that was changed by somebody else in the meantime: try it again",
    413: "a file is larger than the hub takes",
    429: "too many requests: wait, and try it again",
}
_TOLD = (
    *("model.loss", "model.kl", "model.reward", "model.value", "model.surrogate"),
    *("model.advantage", "model.lr_scheduler.class_path", "model.updates", "model.sampling"),
    *(f"model.optimizer.{name}" for name in ("class_path", "lr", "betas", "weight_decay")),
    *("model.gae", "model.backbone.lora", "model.backbone.quantization", "data.batch_size"),
    *("data.max_prompt_length", "data.max_completion_length", "trainer.max_epochs"),
)
"""Options that the card shows of the training."""
_PACKAGES = ("lit-rlhf", "torch", "transformers", "peft")
SPECIAL: Special = {
    "path": {"type": Path},
    "repo": {},
    "--public": SWITCH,
    "--dry_run": SWITCH,
}


def push(
    path: Path,
    repo: str,
    public: bool = False,
    dry_run: bool = False,
    base: str | None = None,
    run: Path | None = None,
    card: Path | None = None,
    license: str | None = None,
    message: str = "Upload by lit-rlhf push",
) -> None:
    """Put an export on the Hugging Face hub: a policy, a reward model or an adapter, with a model card.

    The card says what it was trained on, how, what came of it, and how to load it, as far as the run's directory tells:
    names of directories of this machine are left out. The repository is made if there is none, private unless told
    otherwise. The token is that of `hf auth login`, or of the environment variable HF_TOKEN.

    Args:
        path: A directory that `ExportModel` or `lit-rlhf export` wrote.
        repo: `user/name` or `organization/name`.
        public: Let everybody see it. Without, a repository that is public already is refused.
        dry_run: Show the files and the card, and send nothing.
        base: Hub id of the model that it was trained from; an adapter needs one that others can load.
        run: Directory of the run; default: the one that the export lies in.
        card: A model card of your own, instead of the one that is made.
        license: For the card, by the hub's names: apache-2.0, mit, ...
        message: Of the commit.
    """
    record = _read(path)
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ConfigurationError(f"{repo!r} is no name of a repository: {error}") from error
    if "/" not in repo:
        raise ConfigurationError(f"{repo!r} has no owner: give user/{repo}.")
    record = replace(record, base=_public_base(record, base))
    run = run or (path.parent if (path.parent / "metrics.jsonl").is_file() else None)
    lines = training_lines(run) if run is not None else []
    text = (
        card.read_text(encoding="utf-8")
        if card is not None
        else model_card(record, repo, lines, license)
    )
    files = _files(path, record, text)
    if dry_run:
        sizes = "".join(f"  {_size(data):>10}  {name}\n" for name, data in files.items())
        print_text(f"{repo} ({'public' if public else 'private'}) would get\n{sizes}\n{text}")
        return
    operations = [CommitOperationAdd(name, data) for name, data in files.items()]
    with _hub(repo) as api:
        _make(api, repo, public)
        done = api.create_commit(repo, operations, commit_message=message)
    print_text(f"{done.commit_url}\n")


def _read(path: Path) -> ExportRecord:
    found: dict[str, Any] = dict(read_record(path)) if path.is_dir() else {}
    if not found:
        inner = path / "export"
        hint = (
            f"give {inner}"
            if (inner / RECORD).is_file()
            else f"make one: lit-rlhf export --ckpt_path {path} --output export"
            if path.suffix == ".ckpt"
            else "give a directory that ExportModel or `lit-rlhf export` wrote"
        )
        what = f"holds no {RECORD}" if path.is_dir() else "is no directory"
        raise ConfigurationError(f"{path} is no export, for it {what}: {hint}.")
    found.pop("version", None)
    return ExportRecord(**{**found, "prompts": recorded_prompts(found)})


def _public_base(record: ExportRecord, base: str | None) -> str | None:
    """The base by a name that means something elsewhere; a whole model can do without."""
    found = base or record.base
    if found is None or not Path(found).is_absolute():
        return found
    if record.form == "adapter":
        raise ConfigurationError(
            f"The adapter's base is {found}, which nobody else has: give its hub id as --base, or push a merged export "
            "(lit-rlhf export, with --merge true)."
        )
    return None


def _files(path: Path, record: ExportRecord, card: str) -> dict[str, Path | bytes]:
    """What is sent, by its name there: what names this machine's directories is sent changed."""
    found: dict[str, Path | bytes] = {
        str(file.relative_to(path)): file
        for file in sorted(path.rglob("*"))
        if file.is_file() and not any(part.startswith(".") for part in file.relative_to(path).parts)
    }
    kept = {**read_record(path), "base": record.base}
    found[RECORD] = (json.dumps(kept, indent=2) + "\n").encode()
    if _ADAPTER in found:
        options = json.loads((path / _ADAPTER).read_text(encoding="utf-8"))
        options["base_model_name_or_path"] = record.base
        found[_ADAPTER] = (json.dumps(options, indent=2) + "\n").encode()
    found["README.md"] = card.encode()
    return found


def _size(data: Path | bytes) -> str:
    number = data.stat().st_size if isinstance(data, Path) else len(data)
    return f"{number:,}"


def _make(api: HfApi, repo: str, public: bool) -> None:
    """Make the repository, or see that the one there is shows itself to no more people than was said."""
    try:
        there: Any = api.repo_info(repo)
    except RepositoryNotFoundError:
        api.create_repo(repo, private=not public)
        return
    if not there.private and not public:
        raise ConfigurationError(
            f"{repo} exists and is public: give --public, another name, or make it private first."
        )


@contextmanager
def _hub(repo: str) -> Iterator[HfApi]:
    """The client, with its errors in a sentence."""
    endpoint = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    token = get_token()
    if token is None:
        raise ConfigurationError(
            "There is no token of the hub: `hf auth login`, or set HF_TOKEN to one with the role `write`. --dry_run "
            "needs none."
        )
    try:
        yield HfApi(endpoint, token=token, library_name="lit_rlhf")
    except OfflineModeIsEnabled as error:
        raise ConfigurationError("HF_HUB_OFFLINE is set, so nothing is sent: unset it.") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        said = _STATUS.get(status, (error.server_message or "no reason was given").strip())
        raise ServiceError(
            f"{repo} can't be written at {endpoint} (status {status}): {said}."
        ) from error
    except RuntimeError as error:  # of a large file
        said = " ".join(f"{error} {error.__cause__ or ''}".split())
        raise ServiceError(f"{repo} has got nothing: {said} Try it again.") from error
    except _CLIENT_ERRORS as error:
        raise ServiceError(f"{endpoint} can't be reached: {error}. Try it again later.") from error


def training_lines(directory: Path) -> list[str]:
    """Data, method and figures of a run, in Markdown.

    Raises:
        DataError: It is no run's directory.
    """
    (run,) = read_runs([directory])
    lines = [*_data(run), *_method(run)]
    if found := spreads(Group(run.name, [run])):
        lines += ["", "## Figures", "", "Means over the last tenth of the run.", ""]
        lines += ["| metric | value |", "|---|---|"]
        lines += [f"| {label} | {format_cell(cells[0])} |" for label, cells in found.items()]
    return lines


def _data(run: Run) -> Iterator[str]:
    rows: Mapping[str, Any] = run.record.get("rows", {})
    if not rows:
        return
    yield from ("", "## Data", "", "| part | source | used | left out |", "|---|---|---|---|")
    for name, part in rows.items():
        left = ", ".join(f"{count} {why}" for why, count in part["left_out"].items()) or "none"
        yield f"| {name} | {without_directories(part['source'])} | {part['used']} {part['unit']} | {left} |"


def _method(run: Run) -> Iterator[str]:
    yield from ("", "## Method", "", f"`{run.record.get('module', 'a module')}` of lit_rlhf.")
    options = run.settled()
    told = {n: v for n, v in options.items() if n.startswith(_TOLD) and v not in (None, [], {})}
    if told:
        yield from ("", "| option | value |", "|---|---|")
        yield from (
            f"| `{name}` | `{without_directories(value)}` |" for name, value in told.items()
        )
    last: Mapping[str, Any] = run.starts[-1] if run.starts else {}
    if last:
        had = last["versions"]
        versions = ", ".join(f"{name} {had[name]}" for name in _PACKAGES if name in had)
        minutes = sum(start["seconds"] for start in run.starts) / 60
        where = f"{last['processes']} x {last['device']}"
        yield from (
            "",
            f"{last['iterations']} iterations, {minutes:.1f} minutes on {where}; {versions}.",
        )


def without_directories(value: object) -> str:
    """A value as text; of an absolute path the last part alone, for the others are of this machine.

    Example:
        >>> without_directories("/home/me/data/pairs.jsonl"), without_directories("org/data")
        ('pairs.jsonl', 'org/data')
    """
    text = str(value)
    return PurePath(text).name if PurePath(text).is_absolute() else text
