"""Wake-up messages over Celery. A message carries nothing and only tells a worker to look for a job in Postgres, so lost and
doubled messages are harmless.
"""

import logging

import redis
from celery import Celery
from kombu.exceptions import OperationalError

RUN_NEXT_TASK = "dragqueue.run_next"  # the task's name on the wire; the API never imports the function
CONNECTION_OPTIONS = {
    "socket_timeout": 30,
    "socket_connect_timeout": 5,
    "socket_keepalive": True,
    "health_check_interval": 25,
    "visibility_timeout": 60,
}
# A request waits while its message is sent; the reconciler sends lost messages again.
SENDING_OPTIONS = CONNECTION_OPTIONS | {"socket_timeout": 5, "max_retries": 0}
logger = logging.getLogger(__name__)


class Broker:
    """The sender of wake-up messages: one Celery queue for each pool of workers."""

    def __init__(self, redis_url: str) -> None:
        self.app = Celery("dragqueue", broker=redis_url, set_as_current=False)
        self.app.conf.update(broker_transport_options=SENDING_OPTIONS, task_ignore_result=True)
        self.redis = redis.Redis.from_url(to_redis_py_url(redis_url), socket_timeout=5, socket_connect_timeout=5)

    def send_wake_up(self, pool: str) -> bool:
        """Tell one idle worker of a pool to look for a job; return whether the message was sent.

        A broker that is away is only logged, because the reconciler sends again.
        """
        try:
            self.app.send_task(RUN_NEXT_TASK, queue=queue_name(pool), retry=False)
        except OperationalError as error:
            logger.warning("no wake-up message sent: %s", error)
            return False
        return True

    def count_messages(self, pool: str) -> int:
        """Count the messages that no worker of a pool has taken."""
        return int(self.redis.llen(queue_name(pool)))

    def check(self) -> None:
        """Raise redis.RedisError when the broker does not answer."""
        self.redis.ping()


def queue_name(pool: str) -> str:
    """Return the name of a pool's Celery queue."""
    return f"jobs.{pool}"


def to_redis_py_url(redis_url: str) -> str:
    """Turn kombu's form of a socket URL into the form that redis-py reads."""
    return redis_url.replace("redis+socket://", "unix://").replace("virtual_host=", "db=")
