"""Wake-up messages. They carry nothing: a worker that hears one looks into Postgres, so lost and doubled ones are harmless."""

import logging

import redis
from celery import Celery
from kombu.exceptions import OperationalError

RUN_NEXT = "dragqueue.run_next"  # the task's name on the wire; the API never imports the function
CONNECTION_OPTIONS = {
    "socket_timeout": 30,
    "socket_connect_timeout": 5,
    "socket_keepalive": True,
    "health_check_interval": 25,
    "visibility_timeout": 60,
}
# of who only sends: a request waits for it, and the reconciler sends again what got lost
SENDING_OPTIONS = CONNECTION_OPTIONS | {"socket_timeout": 5, "max_retries": 0}
logger = logging.getLogger(__name__)


class Broker:
    def __init__(self, redis_url: str) -> None:
        self.app = Celery("dragqueue", broker=redis_url, set_as_current=False)
        self.app.conf.update(broker_transport_options=SENDING_OPTIONS, task_ignore_result=True)
        self.redis = redis.Redis.from_url(plain_url(redis_url), socket_timeout=5, socket_connect_timeout=5)

    def wake(self, pool: str) -> bool:
        """Tell one idle worker of a pool to look. A broker that is away is only logged: the reconciler sends again."""
        try:
            self.app.send_task(RUN_NEXT, queue=queue_of(pool), retry=False)
        except OperationalError as error:
            logger.warning("no wake-up message sent: %s", error)
            return False
        return True

    def length(self, pool: str) -> int:
        """Messages that no worker of a pool has taken."""
        return int(self.redis.llen(queue_of(pool)))

    def check(self) -> None:
        """Raises redis.RedisError when the broker does not answer."""
        self.redis.ping()


def queue_of(pool: str) -> str:
    return f"jobs.{pool}"


def plain_url(redis_url: str) -> str:
    """kombu's form of a socket URL as redis-py's."""
    return redis_url.replace("redis+socket://", "unix://").replace("virtual_host=", "db=")
