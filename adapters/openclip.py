"""open_clip's factories, answered by this package's models under open_clip's signatures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import ModuleType

    from .patching import Patch


def answer(patch: Patch, after: dict[str, list[Any]]) -> None:
    """Patches open_clip once it is imported. This package's own use of it does not pass here."""

    def replace(module: ModuleType) -> None:
        for name, function in _functions(patch, module).items():
            for owner in (module, getattr(module, "factory", None)):
                if owner is not None and hasattr(owner, name):
                    patch.replace(owner, name, function)

    after.setdefault("open_clip", []).append(replace)


def _functions(patch: Patch, module: Any) -> dict[str, Any]:
    originals = {
        name: getattr(module, name)
        for name in (
            *("create_model", "create_model_and_transforms", "create_model_from_pretrained"),
            *("get_tokenizer", "tokenize"),
        )
    }

    def made(name: str, pretrained: Any, precision: str, device: Any) -> Any:
        return (
            patch.guide.open_clip_model(name, pretrained, precision, device)
            if patch.active
            else None
        )

    def create_model(
        model_name: str,
        pretrained: Any = None,
        precision: str = "fp32",
        device: Any = "cpu",
        *arguments: Any,
        **keywords: Any,
    ) -> Any:
        found = made(model_name, pretrained, precision, device)
        if found:
            return found[0]
        return originals["create_model"](
            model_name, pretrained, precision, device, *arguments, **keywords
        )

    def create_model_and_transforms(
        model_name: str,
        pretrained: Any = None,
        precision: str = "fp32",
        device: Any = "cpu",
        *arguments: Any,
        **keywords: Any,
    ) -> Any:
        found = made(model_name, pretrained, precision, device)
        if found:
            return found[0], found[1], found[1]
        return originals["create_model_and_transforms"](
            model_name, pretrained, precision, device, *arguments, **keywords
        )

    def create_model_from_pretrained(
        model_name: str,
        pretrained: Any = None,
        precision: str = "fp32",
        device: Any = "cpu",
        *arguments: Any,
        **keywords: Any,
    ) -> Any:
        found = made(model_name, pretrained, precision, device)
        if found:
            return found if keywords.get("return_transform", True) else found[0]
        return originals["create_model_from_pretrained"](
            model_name, pretrained, precision, device, *arguments, **keywords
        )

    def get_tokenizer(model_name: str = "", *arguments: Any, **keywords: Any) -> Any:
        # Whatever stands for the model reads CLIP's vocabulary; others keep their own tokenizer.
        if patch.active and (patch.guide.model or patch.guide.open_clip_key(model_name, "any")):
            return tokenize
        return originals["get_tokenizer"](model_name, *arguments, **keywords)

    def tokenize(texts: str | Sequence[str], context_length: int = 77) -> Any:
        """int64 rows; a text that is too long is cut, as open_clip does."""
        return patch.guide.tokenize(texts, context_length or 77, truncate=True).long()

    return {
        "create_model": create_model,
        "create_model_and_transforms": create_model_and_transforms,
        "create_model_from_pretrained": create_model_from_pretrained,
        "get_tokenizer": get_tokenizer,
        "tokenize": tokenize,
    }
