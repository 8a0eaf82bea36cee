"""A route with one INSERT, to compare submissions with: `python -m benchmarks.bare_route PORT`, with the stack's environment."""

import json
import os
import sys
from typing import Annotated, Any
from uuid import uuid4

import uvicorn
from fastapi import Body, FastAPI
from sqlalchemy import text

from jobs.database import make_sessions
from jobs.environment import read_settings


def create_app(database_url: str) -> FastAPI:
    """Make an application whose one route stores the JSON that it is sent."""
    app, sessions = FastAPI(), make_sessions(database_url)
    statement = text("INSERT INTO bare (id, document) VALUES (:id, CAST(:document AS jsonb))")

    @app.post("/")
    def insert(document: Annotated[dict[str, Any], Body()]) -> dict[str, str]:
        key = uuid4()
        with sessions.begin() as session:
            session.execute(statement, {"id": key, "document": json.dumps(document)})
        return {"id": str(key)}

    return app


if __name__ == "__main__":
    settings = read_settings(os.environ)
    uvicorn.run(create_app(settings.database_url), host="127.0.0.1", port=int(sys.argv[1]), log_level="info")
