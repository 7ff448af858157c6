"""What REST takes and gives, as pydantic models: they check requests and document answers (OpenAPI)."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, StrictBool, model_validator
from pydantic.config import JsonDict
from pydantic.json_schema import SkipJsonSchema

KEY = r"^[A-Za-z0-9_-]{16,64}$"
ID = "4c1f9be07a2d-126"
# Documented, and checked in `core.messages`, which answers 400 with a code of its own.
CHANNEL_FORM: JsonDict = {"pattern": r"^[A-Za-z0-9_.:@-]{1,128}$", "minLength": 1, "maxLength": 128}
Id = Annotated[str, Field(json_schema_extra={"pattern": "^[0-9a-f]{1,40}-[0-9]{1,16}$"})]
USER_FORM: JsonDict = {"pattern": r"^[^\u0000-\u001f\u007f-\u009f]{1,256}$"}
CURSOR_FORM: JsonDict = {"pattern": r"^[0-9]{1,19}([.].*)?$"}
"""Likewise."""
Absent = SkipJsonSchema[None]
"""Beside the type of a header or query parameter that may be left out: there is no `null` in either."""
_BASE64_FORM: JsonDict = {
    "contentEncoding": "base64",
    "pattern": "^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$",
}
_ONE_CONTENT: JsonDict = {
    "oneOf": [
        {"required": ["data"], "properties": {"base64": {"type": "null"}}},
        {"required": ["base64"], "properties": {"base64": {"type": "string"}}, "not": {"required": ["data"]}},
    ],
    "not": {
        "required": ["key", "ephemeral"],
        "properties": {"key": {"type": "string"}, "ephemeral": {"const": True}},
    },
}
"""What `Body` checks beyond its fields, for those who generate clients."""

Key = Annotated[
    str,
    Field(
        pattern=KEY,
        description="Idempotency key: the same key in the same channel within the window yields the first result.",
        examples=["order-7c0e4b1a9d52"],
    ),
]


class Body(BaseModel):
    """A message to publish: `data` (any JSON) or `base64` (binary)."""

    model_config = ConfigDict(extra="ignore", json_schema_extra=_ONE_CONTENT)

    data: Any = Field(default=None, description="Any JSON value.", examples=[{"text": "hi"}])
    base64: str | None = Field(
        default=None, description="Binary content instead of `data`.", examples=["AAE="], json_schema_extra=_BASE64_FORM
    )
    key: Key | None = Field(default=None)
    ephemeral: StrictBool = Field(default=False, description="Neither logged nor resumable (typing, cursors).")

    @model_validator(mode="after")
    def _one_content(self) -> Self:
        has_data = "data" in self.model_fields_set
        if has_data == (self.base64 is not None):
            raise ValueError("give either `data` or `base64`")
        if self.ephemeral and self.key is not None:
            raise ValueError("an ephemeral message has no key: it is not stored")
        return self


class Addressed(Body):
    """A message to publish with its channel."""

    channel: str = Field(examples=["room:42"], json_schema_extra=CHANNEL_FORM)


class Batch(BaseModel):
    """Up to 1,000 messages; each one is checked and answered by itself."""

    messages: list[Any] = Field(
        max_length=1000,
        description="Objects with `channel` and what publishing one takes.",
        examples=[[{"channel": "room:42", "data": {"text": "hi"}, "key": "order-7c0e4b1a9d52"}]],
    )


class PublishedModel(BaseModel):
    """The store has taken the message."""

    id: str | None = Field(description="Its position; null for an ephemeral one.", examples=[ID])
    duplicate: bool = Field(description="Whether the key was known: this is the first result.", examples=[False])


class ErrorContent(BaseModel):
    """What is wrong."""

    code: str = Field(examples=["bad_channel"])
    message: str
    retry_after: float | None = Field(default=None, description="Seconds; only where trying again helps.")
    position: str | None = Field(default=None, description="With `gone`: the id from which to go on.")


class ErrorModel(BaseModel):
    """Every refusal."""

    error: ErrorContent


class BatchResult(BaseModel):
    """One of a batch: the result, or the error."""

    id: str | None = None
    duplicate: bool | None = None
    error: ErrorContent | None = None


class BatchResults(BaseModel):
    """In the order of the batch."""

    results: list[BatchResult]


class MessageModel(BaseModel):
    """A message as `tocsin.v1` shows it."""

    model_config = ConfigDict(populate_by_name=True)

    type: str = "message"
    channel: str = Field(examples=["room:42"])
    id: str = Field(examples=[ID])
    data: Any = Field(default=None, examples=[{"text": "hi"}])
    base64: str | None = None
    sender: str | None = Field(default=None, alias="from", description="Client id of the sender.")
    user: str | None = None
    at: int = Field(description="Redis time in milliseconds.", examples=[1790000000123])


class History(BaseModel):
    """A page of the log, ascending."""

    messages: list[MessageModel]
    position: str = Field(description="Of the last message of the page: the next `since`.", examples=[ID])
    complete: bool = Field(description="Nothing more follows in the range that was asked for.")


class ChannelModel(BaseModel):
    """A channel with a subscriber."""

    channel: str = Field(examples=["room:42"])
    subscribers: int = Field(examples=[3])


class Channels(BaseModel):
    """A page of channels, by name."""

    channels: list[ChannelModel]
    cursor: str | None = Field(description="Give it back as `cursor` for the next page; null at the end.")


class MemberModel(BaseModel):
    """One who is in a channel."""

    member: str = Field(description="User id, or client id when anonymous.", examples=["ada"])
    clients: int = Field(description="Its connections in this channel.", examples=[2])
    info: dict[str, Any] = Field(description="What the newest of them says about itself.", examples=[{}])


class MembersModel(BaseModel):
    """A page of members."""

    members: list[MemberModel]
    count: int = Field(description="Of all members.", examples=[3])
    cursor: str | None = Field(description="Give it back as `cursor` for the next page; null at the end.")


class Disconnect(BaseModel):
    """How long a user is refused after it was disconnected."""

    refuse_seconds: float = Field(
        default=0, strict=True, ge=0, le=31_536_000, description="0: it may return at once.", examples=[3600]
    )


class Revoke(BaseModel):
    """When a token would have ended by itself."""

    expires_at: float | None = Field(
        default=None,
        strict=True,
        ge=0,
        le=253_402_300_799,
        description="Its `exp`; without it, it is refused for 30 days.",
    )
