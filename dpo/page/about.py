"""What was run: in a paragraph, and in full."""

from dpo.page.markup import Html, tag
from dpo.page.reading import Run, figure, part
from dpo.page.state import is_finished, word


def heading(run: Run) -> Html:
    """Its name, and what was run in short: the loss as it was asked for, the start, the steps."""
    flags = part(run.record, "flags")
    loss = str(flags.get("loss") or part(run.record, "settings").get("loss") or "")
    done, planned = run.steps
    of = f"{done:,} of {planned:,}" if done < planned else f"{done:,}"
    words = (loss, model_name(str(flags.get("init") or "data/tiny")), f"{of} step{'s' * (max(done, planned) != 1)}")
    what = " \N{MIDDLE DOT} ".join(filter(None, words)) if run.record else ""
    return tag("h1", run.name, " ", tag("small", what)) if what else tag("h1", run.name)


def model_name(model: str) -> str:
    """A model without the folders that its folder lies in, and without its commit: 'runs/sft', 'gpt2', 'OWNER/NAME'."""
    return "/".join(model.partition("@")[0].rstrip("/").split("/")[-2:])


def paragraph(run: Run) -> Html:
    """What was run, in words."""
    flags, settings = part(run.record, "flags"), part(run.record, "settings")
    done, planned = run.steps
    pieces = [f"{done:,} of {planned:,} steps" if done < planned else f"{done:,} steps"]
    pieces.append(f" of {flags.get('batch')} pairs" * ("batch" in flags))
    if not is_finished(run):
        pieces.append(f", {word(run) or 'not finished yet'},")
    pieces.append(" with ")
    pieces.append(tag("code", str(settings.get("loss") or flags.get("loss") or "an unknown loss")))
    pieces += [", from ", tag("code", str(flags.get("init") or "data/tiny")), ", on "]
    pieces.append(tag("code", str(flags["pairs"])) if flags.get("pairs") else "the embedded set")
    if flags.get("reference"):
        pieces += [", against ", tag("code", str(flags["reference"]))]
    pieces.append("; ")
    if flags.get("lora"):
        pieces.append(f"adapters of rank {flags['lora']}, ")
    if (rate := figure(settings, "lr")) is not None:
        pieces.append(f"peak rate {rate:g}, ")
    if isinstance(count := run.record.get("processes"), int):
        pieces.append(f"{count} process{'es' * (count > 1)}{' (FSDP2)' * bool(flags.get('shard'))}, ")
    pieces.append(f"{settings.get('precision', 'unknown precision')}, seed {flags.get('seed', 'unknown')}.")
    if run.held_out:
        pieces.append(f" {run.held_out:,} pairs were held out.")
    return tag("p", *pieces, class_="lead")


def in_full(run: Run) -> Html:
    """Every flag, what it was resolved to, versions and hashes."""
    tables = []
    for name, title in (("flags", "Flags"), ("settings", "What they came to"), ("versions", "Versions")):
        given = part(run.record, name)
        rows = [tag("tr", tag("th", key), tag("td", tag("code", said(value)))) for key, value in given.items()]
        if rows:
            tables.append(tag("div", tag("h3", title), tag("table", *rows, class_="facts")))
    return tag(
        "details", tag("summary", "Flags, versions, hashes"), tag("div", *tables, class_="columns"), id="in-full"
    )


def said(value) -> str:
    """A flag or a setting; a dash for one that is not set, or holds nothing."""
    if value is None or value == "" or value == []:
        return "\N{EN DASH}"
    if isinstance(value, list):
        return ", ".join(map(said, value))
    return str(value).lower() if isinstance(value, bool) else str(value)
