"""An adapter on the Hugging Face Hub, with a card that says what it is."""

from __future__ import annotations

from pathlib import Path

from vadapt.weights.adapter_file import AdapterInfo, read_info
from vadapt.weights.hub import ADAPTER, PREFIX, client, explained, parse


def push(
    path: str | Path,
    repository: str,
    *,
    private: bool = False,
    message: str | None = None,
    endpoint: str | None = None,
    token: str | None = None,
) -> str:
    """Puts an adapter file on the Hub, in a repository that is made if there is none.

    A short model card is written where the repository has none.

    Args:
        repository: "org/name".
        message: of the commit.

    Returns:
        The address of the commit.

    Raises:
        WeightsError: no adapter file, no access, or no network.
    """
    info = read_info(path)
    address = parse(PREFIX + repository)
    hub = client()
    with explained(address):
        api = hub.HfApi(endpoint=endpoint, token=token)
        api.create_repo(repository, private=private, exist_ok=True)
        operations = [hub.CommitOperationAdd(ADAPTER, str(path))]
        if not api.file_exists(repository, "README.md"):
            text = model_card(info, repository)
            operations.append(hub.CommitOperationAdd("README.md", text.encode()))
        commit = api.create_commit(
            repository, operations, commit_message=message or "An adapter of vadapt"
        )
    return str(commit.commit_url)


def model_card(info: AdapterInfo, repository: str) -> str:
    """The README of an adapter (`AdapterInfo`) on the Hub."""
    create = f"vadapt.create({info.backbone!r}, ...)" if info.backbone else "..."
    rows = [
        ("adapter", info.described),
        ("base weights", f"`{info.base}`"),
        ("classes", ", ".join(info.classes)),
        ("pixel mean, std", info.statistics and f"{info.statistics.mean}, {info.statistics.std}"),
        ("vadapt", info.version),
    ]
    table = "\n".join(f"| {name} | {value} |" for name, value in rows if value)
    run = f"""
Or, to use it as its run did:

```python
run = vadapt.load_run("{PREFIX}{repository}", weights=...)
run.features("photo.jpg")
```
"""
    return f"""---
library_name: vadapt
tags: [vadapt, adapter]
---
# {repository.split("/")[-1]}

What was trained beside a frozen backbone; the backbone's own weights are not in here.

| | |
|---|---|
{table}

```python
import vadapt

backbone = {create}  # with the pretrained weights that it was trained on
model = vadapt.adapt_from(backbone, "{PREFIX}{repository}")
```
{run if "config" in info.extra else ""}"""
