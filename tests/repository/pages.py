"""What pages of the documentation hold: fenced blocks, shell commands."""

import re
import shlex

SHELL = ("bash", "sh", "shell", "console")


def blocks(text, languages):
    """(line, text) of each fenced block in one of the languages."""
    found, language, start, lines = [], None, 0, []
    for number, line in enumerate(text.splitlines(), 1):
        fence = re.match(r"\s*(```+)\s*(\w*)", line)
        if fence and language is None:
            language, start, lines = fence[2], number + 1, []
        elif fence:
            if language in languages:
                found.append((start, "\n".join(lines)))
            language = None
        elif language is not None:
            lines.append(line)
    return found


def indented(text):
    """The blocks of a page that are code by four spaces: here they are all commands."""
    found, fenced, in_list, previous = [], False, False, ""
    for line in text.splitlines():
        if re.match(r"\s*```", line):
            fenced = not fenced
        elif not fenced and re.match(r"\S", line):
            in_list = re.match(r"([-*+]|\d+[.)]) ", line) is not None
        elif not (fenced or in_list) and re.match(r" {4}\S", line):
            if previous is None:
                found[-1] += "\n" + line[4:]
                continue
            if not previous:
                found.append(line[4:])
                previous = None  # the lines right after belong to this block
                continue
        previous = line.strip()
    return found


def commands(text):
    """The shell commands of a page, words split, `$` prompts and settings taken off."""
    found = []
    for block in [block for _, block in blocks(text, SHELL)] + indented(text):
        lines = block.replace("\\\n", " ").splitlines()
        if any(line.startswith("$ ") for line in lines):
            lines = [line[2:] for line in lines if line.startswith("$ ")]
        for line in lines:
            words = shlex.split(line, comments=True)
            for part in " \0 ".join(words).replace("\0 && ", "\0 ; ").split("\0 ; "):
                args = [w.strip() for w in part.split("\0") if w.strip()]
                while args and re.fullmatch(r"\w+=.*", args[0]):
                    args.pop(0)
                if args:
                    found.append(args)
    return found
