"""Additions to the OpenAPI document: what FastAPI cannot see, such as bodies that routes read themselves."""

from functools import cache
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from starlette.routing import Route

from api.errors import CODES
from jobs.spec.job_spec import JobSpec

NO_NUL = "^[^\x00]*$"  # Postgres has no such character
PROBLEM = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/ProblemDocument"}}}
JOB_EXAMPLE: dict[str, Any] = {
    "model": "demo-faces",
    "source": {"seed": 3},
    "points": [{"handle": [75, 80], "target": [59, 80]}],
    "movable": {"shapes": [{"circle": [66, 70, 46]}]},
}
JOB_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": {"$ref": "#/components/schemas/JobSpec"}, "example": JOB_EXAMPLE},
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

JSONL: dict[int | str, dict[str, Any]] = {200: {"content": {"application/jsonl": {"schema": {"type": "string"}}}}}

UPLOAD_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            media_type: {"schema": {"type": "string", "format": "binary"}}
            for media_type in ("image/jpeg", "image/png", "image/webp", "application/octet-stream")
        },
    }
}

MAKES_A_JOB: dict[int | str, dict[str, Any]] = {
    202: {
        "headers": {"Location": {"schema": {"type": "string"}, "description": "of the job"}},
        "links": {
            name: {"operationId": f"jobs_{name}", "parameters": {"job_id": "$response.body#/id"}}
            for name in ("get", "cancel", "stop", "retry", "delete", "frames", "artifacts")
        },
    }
}


ANNOUNCES_AN_UPLOAD: dict[int | str, dict[str, Any]] = {
    201: {
        "links": {"complete": {"operationId": "uploads_complete", "parameters": {"presigned_id": "$response.body#/id"}}},
    }
}


def operation_id(route: APIRoute) -> str:
    """Return the operation id of a route, such as jobs_submit. Generated clients use it as a name."""
    return "_".join([*map(str, route.tags[:1]), route.name.rstrip("_")])


def complete_openapi(app: FastAPI) -> None:
    """Add to the application's document the schema that JOB_BODY refers to, and what errors look like; serve it as bytes."""
    generate = app.openapi

    @cache
    def openapi() -> dict[str, Any]:
        document = generate()
        schemas = document["components"]["schemas"]
        schema = JobSpec.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas |= schema.pop("$defs") | {"JobSpec": schema}
        schemas["ProblemDocument"]["properties"]["code"]["enum"] = CODES
        for answer in ("JobView", "Verdict"):
            schemas[answer]["properties"]["spec"] = {"$ref": "#/components/schemas/JobSpec"}
        for operations in document["paths"].values():
            for operation in operations.values():
                describe_errors(operation["responses"])
                describe_streams(operation["responses"])
        return document

    @cache
    def rendered() -> Response:
        return JSONResponse(openapi())

    async def send_document(_: Request) -> Response:
        return rendered()

    # before FastAPI's own route, which renders the document for every request
    app.router.routes.insert(0, Route("/openapi.json", send_document, include_in_schema=False))
    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way


def describe_errors(responses: dict[str, Any]) -> None:
    """Say that every error is a problem document."""
    for status, response in responses.items():
        if status >= "400":
            response["content"] = PROBLEM


def describe_streams(responses: dict[str, Any]) -> None:
    """Describe streams as OpenAPI 3.1 does: FastAPI describes their items with a word of 3.2."""
    for response in responses.values():
        for media_type in response.get("content", {}).values():
            if media_type.pop("itemSchema", None) is not None:
                media_type["schema"] = {"type": "string"}
