"""Models of several pairs of languages, trained with fairseq's task ``translation_multi_simple_epoch``."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairseq.data.multilingual.multilingual_utils import LangTokStyle, get_lang_tok

TASK = "translation_multi_simple_epoch"

# the options of the task that decide what a model gets to see of a sentence, and how a checkpoint holds their values
_OPTIONS: dict[str, type] = {
    "lang_pairs": list,
    "langs": list,
    "lang_dict": str,
    "source_dict": str,
    "target_dict": str,
    "fixed_dictionary": str,
    "lang_tok_style": str,
    "langtoks_specs": list,
    "langtoks": dict,
    "encoder_langtok": str,
    "decoder_langtok": bool,
    "lang_tok_replacing_bos_eos": bool,
    "enable_lang_ids": bool,
    "left_pad_source": bool,
    "left_pad_target": bool,
    "extra_data": dict,  # its names, too, decide which words the dictionaries get
}
_BY_NAME = ("left_pad_source", "left_pad_target")  # True and False are given as words, not as a switch


@dataclass(frozen=True)
class Multilingual:
    """What such a model was trained with.

    Attributes:
        pairs: of languages, such as en-de.
        languages: that it knows; None if they are in a file (``--lang-dict``).
        options: of fairseq-generate, which make its task that of the training; each a single literal argument.
        dictionaries: of source and target, by these words, where they are not those of the languages.
        mark: whose language a word in the source names: ``src``, ``tgt`` or the like; None without such a word.
        mark_style: how that word looks, as fairseq calls it.
        replaces_end: that word stands in the place of the end of the sentence instead of before its beginning.
    """

    pairs: list[str]
    languages: list[str] | None
    options: list[str]
    dictionaries: dict[str, Path]
    mark: str | None
    mark_style: str
    replaces_end: bool

    def pair(self, source: str | None, target: str | None) -> tuple[str, str]:
        """Return the languages to translate between.

        Args:
            source: that was asked for; None if any will do.
            target: likewise.

        Raises:
            ValueError: the model does not know one, or the choice is left open.
        """
        for language in (source, target):
            if language and self.languages and language not in self.languages:
                raise ValueError(f"the model knows no {language}; its languages are {', '.join(self.languages)}")
        if source and target:  # that it was not trained on, it translates as well as it can
            return source, target
        known = dict.fromkeys(tuple(pair.split("-")[:2]) for pair in self.pairs)  # as fairseq does
        found = [pair for pair in known if source in (pair[0], None) and target in (pair[1], None)]
        if len(found) != 1:
            raise ValueError(
                f"the model translates {', '.join(self.pairs)}; choose with --source-lang and --target-lang"
            )
        return found[0][0], found[0][1]

    def source_mark(self, source: str, target: str) -> str:
        """Return the word that fairseq puts into sources to name a language; "" for none."""
        if self.mark is None:
            return ""
        mark: str = get_lang_tok(source if self.mark.startswith("src") else target, self.mark_style, self.mark)
        return mark


def multilingual(task: Mapping[str, Any]) -> Multilingual | None:
    """Return what the configuration of a task, of a checkpoint, says of several pairs of languages; None for one pair.

    Nothing of it is evaluated, and no value can become another argument.

    Raises:
        ValueError: a value is not of its kind.
    """
    if task.get("_name") != TASK:
        return None
    given = {name: task[name] for name in _OPTIONS if task.get(name) not in (None, {})}
    for name, value in given.items():
        if not _is_sound(name, value):
            raise ValueError(
                f"the checkpoint says task.{name}={value!r:.200}, which is not a valid value; use another checkpoint"
            )
    if not given.get("lang_pairs"):
        raise ValueError(f"the checkpoint is of task {TASK}, but names no pairs of languages; use another checkpoint")
    pairs = given["lang_pairs"]
    languages = given.get("langs") or sorted({language for pair in pairs for language in pair.split("-")})
    sides = {"source": given.get("source_dict"), "target": given.get("target_dict")}
    dictionaries = {side: given.get("fixed_dictionary") or path for side, path in sides.items()}
    main = given.get("langtoks", {}).get("main", (given.get("encoder_langtok"),))
    return Multilingual(
        pairs,
        None if given.get("lang_dict") else languages,
        [f"--task={TASK}", *(_argument(name, value) for name, value in given.items() if value or name in _BY_NAME)],
        {side: Path(path) for side, path in dictionaries.items() if path},
        main[0],
        given.get("lang_tok_style", "multilingual"),
        given.get("lang_tok_replacing_bos_eos", False),
    )


def _is_sound(name: str, value: Any) -> bool:
    """Whether a value is of the kind that fairseq saves; names of languages are no paths, which fairseq would read."""
    if type(value) is not _OPTIONS[name]:
        return False
    if isinstance(value, list):
        words = all(isinstance(word, str) and os.sep not in word and "," not in word for word in value)
        return words and (name != "lang_pairs" or all("-" in pair for pair in value))
    if isinstance(value, dict):  # of texts, or of two texts, each of which may be None
        pairs = all(isinstance(item, tuple) and len(item) == 2 for item in value.values())
        items = [text for pair in value.values() for text in pair if text is not None] if pairs else value.values()
        return pairs == (name == "langtoks") and all(isinstance(text, str) for text in [*value, *items])
    return name != "lang_tok_style" or value in [style.value for style in LangTokStyle]


def _argument(name: str, value: Any) -> str:
    option = f"--{name.replace('_', '-')}"
    if value is True and name not in _BY_NAME:
        return option
    return f"{option}={','.join(value) if isinstance(value, list) else value}"
