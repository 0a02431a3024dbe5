"""Structured logs: JSON lines that never hold what users wrote."""

import logging

import orjson


class JsonLines(logging.Formatter):
    """Log records as one JSON object a line, with the fields that were given as ``extra``."""

    _OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}

    def format(self, record: logging.LogRecord) -> str:
        """See :class:`logging.Formatter`."""
        more = {name: value for name, value in vars(record).items() if name not in self._OWN}
        line = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **more,
        }
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return orjson.dumps(line, default=str).decode()
