"""What clients send: checked, and turned into what the gateway works with."""

from collections.abc import Sequence
from typing import Annotated, Any, TypeVar

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from flywheel_tasks.chat.card import Turn
from flywheel_tasks.settings import SIGNALS

CHARACTER = "character:"
_Body = TypeVar("_Body", bound=BaseModel)
# Given by the user's next message, never by a call: curation derives it.
GIVEN_SIGNALS = tuple(name for name in SIGNALS if name != "continue")
# Fields of OpenAI's protocol that ask for something else than one plain text.
_REFUSED = (
    "tools",
    "tool_choice",
    "functions",
    "function_call",
    "response_format",
    "logprobs",
    "audio",
    "modalities",
)
_USED = frozenset(
    {
        *("model", "messages", "stream", "stream_options", "n", "max_tokens", "max_completion_tokens"),
        *("user", "metadata", "store"),
    }
)


class ApiError(Exception):
    """A request is answered with an error.

    Attributes:
        status: HTTP status.
        code: for programs.
        message: for people; never holds a user's text.
        headers: of the answer.
    """

    def __init__(self, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.headers = status, code, message, headers or {}

    def body(self) -> dict[str, Any]:
        """As OpenAI's protocol has it."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": self.message, "type": kind, "param": None, "code": self.code}}


class _Part(BaseModel):
    type: str
    text: str = ""


class _Message(BaseModel):
    role: str
    content: str | list[_Part] | None = None

    def text(self) -> str:
        if isinstance(self.content, list):
            if any(part.type != "text" for part in self.content):
                raise ApiError(400, "unsupported_content", "only parts of type text are understood")
            return "".join(part.text for part in self.content)
        return self.content or ""


class _Metadata(BaseModel):
    """What this gateway understands of ``metadata``."""

    model_config = ConfigDict(extra="allow")

    conversation_id: str | None = None
    regenerate: str | None = None
    arm: str | None = None


class _StreamOptions(BaseModel):
    include_usage: bool | None = None


class ChatRequest(BaseModel):
    """The body of ``POST /v1/chat/completions``."""

    model_config = ConfigDict(extra="allow")

    model: str
    messages: Annotated[list[_Message], Field(min_length=1)]
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    n: int | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    user: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    metadata: _Metadata | None = None

    def card_id(self) -> str:
        """The character that ``model`` names."""
        if not self.model.startswith(CHARACTER):
            raise ApiError(
                404, "model_not_found", f"model must be {CHARACTER}ID, with an id of GET /v1/models"
            )
        return self.model.removeprefix(CHARACTER)

    def wanted(self) -> _Metadata:
        """The metadata, empty if there is none."""
        return self.metadata or _Metadata()

    def max_new_tokens(self, most: int) -> int:
        """Tokens of the reply, ``most`` or fewer."""
        return min(self.max_completion_tokens or self.max_tokens or most, most)

    def unused(self) -> list[str]:
        """Fields that are understood by others and change nothing here: how replies are drawn is the arm's."""
        given = {name for name, value in (self.model_extra or {}).items() if value is not None}
        return sorted(given - _USED)

    def turns(self, most_characters: int) -> list[Turn]:
        """The conversation.

        Args:
            most_characters: of the last message, and of a greeting.

        Raises:
            ApiError: user and assistant do not take turns, the last message is no user's, or a user's message, the
                last one or a greeting is blank or too long.
        """
        roles = [message.role for message in self.messages]
        if set(roles) & {"system", "developer"}:
            raise ApiError(400, "system_message", "the character's card is the system prompt: send none")
        greeted = roles[0] == "assistant"
        said = roles[1:] if greeted else roles
        if said != ["user", "assistant"] * (len(said) // 2) + ["user"]:
            raise ApiError(
                400,
                "bad_turns",
                "messages must be user, assistant, ... (a greeting of the assistant may come first), and end with "
                "the user's",
            )
        turns: list[Turn] = [
            {"role": "user" if role == "user" else "assistant", "content": message.text()}
            for role, message in zip(roles, self.messages, strict=True)
        ]
        if any(turn["role"] == "user" and not turn["content"].strip() for turn in turns):
            raise ApiError(400, "blank_message", "a user's message must not be blank")
        if greeted and not turns[0]["content"].strip():
            raise ApiError(400, "blank_message", "a greeting must not be blank")
        if any(len(turn["content"]) > most_characters for turn in (turns[-1], *turns[:greeted])):
            raise ApiError(400, "message_too_long", f"a message has at most {most_characters} characters")
        return turns


class FeedbackRequest(BaseModel):
    """The body of ``POST /v1/feedback``."""

    model_config = ConfigDict(extra="forbid")

    message_id: str
    signal: str
    value: Annotated[str, Field(max_length=4000)] | None = None
    user: Annotated[str, Field(min_length=1, max_length=200)] | None = None

    def checked(self) -> "FeedbackRequest":
        """Itself, if signal and value fit together.

        Raises:
            ApiError: they do not.
        """
        if self.signal not in GIVEN_SIGNALS:
            raise ApiError(400, "unknown_signal", f"signal must be one of {', '.join(GIVEN_SIGNALS)}")
        if self.signal == "feedback" and not (self.value or "").strip():
            raise ApiError(400, "missing_value", "a feedback has its text in value")
        return self


def _described(errors: Sequence[Any]) -> str:
    """Validation errors as text, without what was sent: so not the place of an unknown field, which is its name."""
    places = [() if error["type"] == "extra_forbidden" else error["loc"] for error in errors[:5]]
    shown = [".".join(map(str, place)) or "body" for place in places]
    return "; ".join(f"{place}: {error['msg']}" for place, error in zip(shown, errors, strict=False))


def parse_body(body: bytes, kind: type[_Body]) -> _Body:
    """Decode and check a body.

    Raises:
        ApiError: it is not JSON, or not what ``kind`` describes.
    """
    try:
        return kind.model_validate(orjson.loads(body))
    except orjson.JSONDecodeError as error:
        raise ApiError(400, "not_json", f"the body is not JSON: {error.msg}") from error
    except ValidationError as error:
        raise ApiError(400, "bad_request", _described(error.errors(include_url=False))) from error


def refuse_unsupported(request: ChatRequest) -> None:
    """Raise an ApiError for what would change the meaning of the answer if it were passed over."""
    asked = [name for name in _REFUSED if (request.model_extra or {}).get(name)]
    if request.n not in (None, 1):
        asked.append("n")
    if asked:
        raise ApiError(400, "unsupported_parameter", f"not supported here: {', '.join(asked)}")
