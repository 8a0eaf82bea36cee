"""The OpenAPI document: routes that read their body themselves say here what it looks like."""

from typing import Any

from fastapi import FastAPI

from jobs.spec import JobSpec

NO_NUL = "^[^\x00]*$"  # Postgres has no such character
JOB_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": {"$ref": "#/components/schemas/JobSpec"}},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["job"],
                    "properties": {
                        "job": {"type": "string", "description": "the same JSON"},
                        "image": {"type": "string", "format": "binary", "description": "a photo, instead of a source"},
                        "movable": {"type": "string", "format": "binary", "description": "PNG; non-zero pixels may change"},
                    },
                }
            },
        },
    }
}

BATCH_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/jsonl": {"schema": {"type": "string", "description": "one job a line"}}},
    }
}

JSONL: dict[int | str, dict[str, Any]] = {200: {"content": {"application/jsonl": {}}}}

UPLOAD_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            media_type: {"schema": {"type": "string", "format": "binary"}}
            for media_type in ("image/jpeg", "image/png", "image/webp", "application/octet-stream")
        },
    }
}


def add_body_schemas(app: FastAPI) -> None:
    """Put what JOB_BODY refers to among the document's components."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        document = generate()
        schema = JobSpec.model_json_schema(ref_template="#/components/schemas/{model}")
        document["components"]["schemas"] |= schema.pop("$defs") | {"JobSpec": schema}
        return document

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way
