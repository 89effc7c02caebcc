"""Identifiers, as types of their own so that they cannot be mixed up."""

from __future__ import annotations

from typing import NewType

RequestId = NewType("RequestId", str)
TenantId = NewType("TenantId", str)
BlockId = NewType("BlockId", int)

DEFAULT_TENANT = TenantId("default")
