"""The gate before training: stores are audited once, and what was found decides each start."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from trainer.config.schema import Config
from trainer.config.sections.example_data import ExamplesSection
from trainer.data.audit_stores import audit_stores
from trainer.data.audit_template import template_findings
from trainer.data.example_store import ExampleStore
from trainer.data.task_tokenizer import TaskTokenizer
from trainer.data.template import ChatTemplate
from trainer.plan import StorePlan
from trainer.records.audit import AuditReport, Finding, read_audit, subject_name, write_audit

Log = Callable[[str], None]


def gate(config: Config, stores: Sequence[StorePlan], *, log: Log) -> None:
    """Raises: DataError with file and rows, if the examples are not fit to train on."""
    if not isinstance(config.data, ExamplesSection):
        return
    report = audited(config, config.data, stores)
    allow = config.data.audit.allow
    refused = report.refused(allow=allow)
    for found in report.findings:
        if found not in refused:
            log(f"data audit: {found.line()}")
    report.check(allow=allow)


def audited(config: Config, data: ExamplesSection, stores: Sequence[StorePlan]) -> AuditReport:
    """What was found the last time if the stores are still those, else looked for now.

    Raises: DataError if a store is damaged.
    """
    near = data.audit.near_copies
    digests = {store.source: store.manifest_digest for store in stores}
    name = subject_name(digests, near_copies=near)
    folders = [Path(store.path) for store in stores]
    known = read_audit(folders[0])
    if known is not None and known.subject == name:
        report = known
    else:
        tokenizer = TaskTokenizer.open(folders[0])
        report = audit_stores(
            [ExampleStore.open(folder) for folder in folders],
            tokenizer,
            name=name,
            near=near,
            more=_of_template(config, data, tokenizer),
        )
    for folder in folders:
        if read_audit(folder) != report:
            write_audit(folder, report)
    return report


def _of_template(
    config: Config, data: ExamplesSection, tokenizer: TaskTokenizer
) -> Sequence[Finding]:
    name = getattr(config.task, "template", None)
    if name is None:
        return ()
    folder = Path(data.tokenizer.path).expanduser()
    template = ChatTemplate.find(folder, name=name, date=getattr(config.task, "date", None))
    if template is None:  # whose data are no chats, or its encoding would have refused them
        return ()
    return template_findings(template, tokenizer)
