"""The cell's key providers, in the shape that the keyring asks for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from app.kms.binding import AwsBinding, AzureBinding, Binding, LocalBinding, TransitBinding
from app.kms.provider import KeyProvider, KmsMisconfigured
from app.kms.registry import ProviderRegistry

_BINDINGS: Mapping[str, type[Binding]] = {
    kind.provider: kind for kind in (AwsBinding, AzureBinding, LocalBinding, TransitBinding)
}


class Providers:
    """Providers of one worker, made by its registry."""

    def __init__(self, registry: ProviderRegistry) -> None:
        self._registry = registry

    @property
    def vendor(self) -> KeyProvider:
        """The cell's own key. May raise a ``KmsError`` where its configuration can't be used."""
        return self._registry.vendor()

    def for_binding(self, provider: str, fields: Mapping[str, Any], external_id: str) -> KeyProvider:
        """The provider of a stored binding; ``external_id`` stands among its ``fields`` where it has one."""
        kind = _BINDINGS.get(provider)
        if kind is None:
            raise KmsMisconfigured("UnknownProvider", "a stored binding names a provider that doesn't exist")
        try:
            return self._registry.provider(kind(**fields))
        except TypeError:
            raise KmsMisconfigured("BrokenBinding", "a stored binding's fields are not those of its provider") from None
