"""The help of ``ofg``: panels of options, whole sentences at any width, examples last.

A verb is added with ``verb``, which also gives it the options that every verb has: ``--quiet``, where more can be told
``--verbose``, and where some options are rarely used ``--help-all``.
"""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_args

import typer
from typer.core import TyperCommand, TyperGroup

from ofg_deploy.cli.terminal import talking

if TYPE_CHECKING:
    from rich.text import Text

Function = TypeVar("Function", bound=Callable[..., Any])
BASIC, COMPANIONS, OUTPUT, QUALITY = "Basic", "Labels and points", "Output", "Quality"
RUNTIME, BATCH, OTHER = "Runtime", "Batch", "Other"
REGISTER, TRAIN, MODELS = "Register and evaluate", "Train and export", "Models"
PANELS = ("Arguments", BASIC, COMPANIONS, OUTPUT, QUALITY, "Data", "Network", "Guidance", RUNTIME, BATCH)
COMMANDS = (REGISTER, TRAIN, MODELS)
ORDER = (
    "register",
    "apply",
    "check",
    "report",
    "view",
    "eval",
    "serve",
    "data",
    "train",
    "export",
    "models",
    "info",
    "bench",
)
MOST_COLUMNS = 110  # longer lines are hard to read
NAMES = 26  # columns of the option names; longer ones have a line of their own
Rows = Sequence[tuple[str, str]]


def choices(kind: Any) -> str:
    """The choices of a Literal as the help has them."""
    return "|".join(get_args(kind))


_Quiet = Annotated[
    bool,
    typer.Option("--quiet", "-q", rich_help_panel=OTHER, help="Print only warnings, errors and the --json document."),
]
_Verbose = Annotated[bool, typer.Option("--verbose", "-v", rich_help_panel=OTHER, help="Print more details.")]


def _show_all(context: typer.Context, wanted: bool) -> None:
    if wanted:
        print(_help(context, everything=True))
        raise typer.Exit


_HelpAll = Annotated[
    bool,
    typer.Option(
        "--help-all",
        callback=_show_all,
        is_eager=True,
        rich_help_panel=OTHER,
        help="Show this message with the rarely used options, and exit.",
    ),
]


def verb(
    app: typer.Typer,
    name: str | None = None,
    *,
    panel: str | None = None,
    examples: Rows,
    usage: str | None = None,
    verbose: bool = False,
    rare: bool = False,
) -> Callable[[Function], Function]:
    """Add a function to ``app`` as a command.

    Args:
        name: of the command, the function's if None.
        panel: heading under which the list of commands has it.
        examples: what each does, and its command line.
        usage: arguments as the usage line has them; made of the parameters if None.
        verbose: whether it takes ``--verbose``.
        rare: whether some of its options are hidden, so that it takes ``--help-all``.
    """
    shared: dict[str, Any] = {"quiet": _Quiet}
    shared |= {"verbose": _Verbose} if verbose else {}
    shared |= {"help_all": _HelpAll} if rare else {}
    kind = type("Command", (Verb,), {"examples": tuple(examples), "usage": usage})

    def decorate(function: Function) -> Function:
        def command(**given: Any) -> Any:
            given.pop("help_all", None)
            with talking(quiet=given.pop("quiet"), verbose=given.pop("verbose", False)):
                return function(**given)

        signature = inspect.signature(function, eval_str=True)
        own = [p.replace(kind=p.KEYWORD_ONLY) for p in signature.parameters.values()]
        more = [
            inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=a) for n, a in shared.items()
        ]
        command.__signature__ = signature.replace(parameters=[*own, *more])  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in (*own, *more)}
        command.__doc__ = function.__doc__
        app.command(name=name or function.__name__, cls=kind, rich_help_panel=panel)(command)
        return function

    return decorate


class Verb(TyperCommand):
    """A command with its help in panels."""

    examples: Rows = ()
    usage: str | None = None

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """As in ``typer.core.TyperCommand``."""
        formatter.write(_help(ctx))


class Verbs(TyperGroup):
    """A group of commands with its help in panels."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """As in ``typer.core.TyperGroup``."""
        formatter.write(_help(ctx))


def _help(context: Any, everything: bool = False) -> str:
    from io import StringIO

    from rich.console import Console
    from rich.panel import Panel

    from ofg_deploy.cli.terminal import colours

    command = context.command
    real = Console()
    width = min(real.width, MOST_COLUMNS)
    text = StringIO()
    console = Console(
        file=text,
        width=width,
        force_terminal=colours(),
        markup=False,
        emoji=False,
        highlight=False,
        legacy_windows=False,
    )
    usage = f"Usage: {context.command_path} {_usage(command)}"
    console.print(usage, style="bold", soft_wrap=True)
    for paragraph in inspect.cleandoc(command.help or "").split("\n\n"):
        console.print("\n" + textwrap.fill(" ".join(paragraph.split()), width, break_on_hyphens=False))
    console.print()
    box = _box(real)
    for title, rows in _panels(context, everything):
        console.print(Panel(_list(rows, width - 4), title=title, title_align="left", box=box, border_style="dim"))
    if examples := getattr(command, "examples", ()):
        console.print("Examples:", style="bold")
        for says, line in examples:
            console.print(f"  # {says}", style="dim", soft_wrap=True)
            console.print(f"  {line}", soft_wrap=True)
    hidden = sum(getattr(p, "hidden", False) for p in command.params)
    if hidden and not everything:
        note = f"{hidden} rarely used {'option is' if hidden == 1 else 'options are'} not listed"
        console.print(f"\n{note}: {context.command_path} --help-all", soft_wrap=True)
    return text.getvalue()


def _box(console: Any) -> Any:
    from rich import box

    return box.ROUNDED if console.encoding.lower().startswith("utf") else box.ASCII


def _usage(command: Any) -> str:
    if (given := getattr(command, "usage", None)) is not None:
        return f"[OPTIONS] {given}".rstrip()
    if hasattr(command, "commands"):
        return "[OPTIONS] COMMAND [ARGS]..."
    pieces = ["[OPTIONS]"]
    for one in command.params:
        if one.param_type_name == "argument":
            word = f"{_placeholder(one)}{'...' if one.nargs == -1 else ''}"
            pieces.append(word if one.required else f"[{word}]")
    return " ".join(pieces)


def _panels(context: Any, everything: bool) -> Iterator[tuple[str, list[tuple[str, str, str]]]]:
    """Title and rows (names, placeholder of the value, sentence) of each panel that is not empty."""
    panels: dict[str, list[tuple[str, str, str]]] = {"Arguments": []}
    for one in context.command.get_params(context):
        if getattr(one, "hidden", False) and not everything:
            continue
        if one.param_type_name == "argument":
            panels["Arguments"].append((_placeholder(one), "", one.help or ""))
            continue
        panels.setdefault(getattr(one, "rich_help_panel", None) or OTHER, []).append(
            (_names(one, everything), "" if one.is_flag else _placeholder(one), _sentence(one))
        )
    commands: dict[str, list[tuple[str, str, str]]] = {}
    for name in sorted(getattr(context.command, "commands", ()), key=_place(ORDER)):
        below = context.command.get_command(context, name)
        summary = inspect.cleandoc(below.help or "").split("\n\n")[0]
        title = getattr(below, "rich_help_panel", None)
        commands.setdefault(title if isinstance(title, str) else "Commands", []).append((name, "", summary))
    for title in sorted(commands, key=_place(COMMANDS)):
        yield title, commands[title]
    for title in sorted(panels, key=_place(PANELS)):
        if panels[title]:
            yield title, panels[title]


def _place(order: Sequence[str]) -> Callable[[str], int]:
    """A key to sort by; what is not in ``order`` stays as it was behind it, the panel of what all verbs have last."""
    return lambda name: order.index(name) if name in order else len(order) + (name == OTHER)


def _placeholder(parameter: Any) -> str:
    return str(parameter.metavar or parameter.name.upper())


def _names(option: Any, aliases: bool) -> str:
    """Short and long name; other long ones where all is shown."""
    long = [name for name in option.opts if name.startswith("--")]
    short = [name for name in option.opts if not name.startswith("--")]
    names = ", ".join([*short, *(long if aliases else long[:1])])
    return "/".join([names, *option.secondary_opts])


def _sentence(option: Any) -> str:
    """The sentence of an option, its default behind it."""
    default = option.default
    if option.show_default is False or default is None or isinstance(default, bool | list | tuple):
        return str(option.help or "")
    return f"{option.help or ''} [default: {default}]"


def _list(rows: Iterable[tuple[str, str, str]], width: int) -> Text:
    """Names on the left, sentences on the right; names that are too long have a line of their own."""
    from rich.text import Text

    rows = list(rows)
    left = min(NAMES, max(len(f"{names} {value}".rstrip()) for names, value, _ in rows) + 2)
    text = Text()
    for names, value, sentence in rows:
        head = Text(names, style="bold cyan")
        if value:
            head.append(f" {value}", style="yellow")
        lines = textwrap.wrap(" ".join(sentence.split()), width - left, break_on_hyphens=False) or [""]
        if text:
            text.append("\n")
        if len(head) < left - 1:
            head.pad_right(left - len(head))
        else:
            head = Text("\n").join([*_folded(head, names, value, width), Text(" " * left)])
        text.append_text(head)
        for number, line in enumerate(lines):
            text.append(("\n" + " " * left if number else "") + line)
    return text


def _folded(head: Text, names: str, value: str, width: int) -> list[Text]:
    """A head that is wider than the panel has its choices on lines of their own."""
    from rich.text import Text

    if len(head) <= width:
        return [head]
    parts, lines = value.split("|"), [""]
    for number, part in enumerate(parts):
        piece = part + ("|" if number < len(parts) - 1 else "")
        if len(lines[-1]) + len(piece) > width - 4 and lines[-1]:
            lines.append("")
        lines[-1] += piece
    return [Text(names, style="bold cyan"), *(Text(f"    {line}", style="yellow") for line in lines)]
