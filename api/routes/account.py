"""/v1/usage, /v1/queue, /v1/audit: what a tenant has and may have, its queue, and its audit log."""

from fastapi import APIRouter

from api.auth import Admin, Reader
from api.dependencies import SettingsDep, UnitOfWorkDep
from api.paging import Cursor, Limit, split_page
from api.routing import ApiRoute
from api.schemas.account import AuditPage, AuditView, QueueView, UsageView
from api.schemas.problems import ERRORS
from jobs.queue import jobs
from jobs.tables import Tenant
from jobs.tenants import audit, quotas
from jobs.tenants.quotas import Quotas

router = APIRouter(responses=ERRORS, route_class=ApiRoute)


@router.get("/usage")
def usage(principal: Reader, unit_of_work: UnitOfWorkDep, settings: SettingsDep) -> UsageView:
    """Return how many jobs, uploads and bytes the tenant has, and how many it may have."""
    tenant = unit_of_work.session.get_one(Tenant, principal.tenant)
    usage, limits = quotas.get_usage(unit_of_work.session, principal.tenant), Quotas.from_settings(settings).for_tenant(tenant)
    return UsageView(**vars(usage), **vars(limits), max_running=tenant.max_running)


@router.get("/queue")
def queue(principal: Reader, unit_of_work: UnitOfWorkDep) -> QueueView:
    """Return how many jobs wait and run, and for how long the first has waited."""
    usage = quotas.get_usage(unit_of_work.session, principal.tenant)
    return QueueView(
        queued=usage.queued, running=usage.running, oldest_queued_s=jobs.oldest_queued_s(unit_of_work.session, principal.tenant)
    )


@router.get("/audit")
def lines(principal: Admin, unit_of_work: UnitOfWorkDep, cursor: Cursor = None, limit: Limit = 50) -> AuditPage:
    """List cancels, deletions and everything about keys, the newest first."""
    rows = audit.page(unit_of_work.session, principal.tenant, limit=limit + 1, before=cursor)
    page, next_cursor = split_page(rows, limit, lambda line: line.seq)
    return AuditPage(lines=list(map(AuditView.model_validate, page)), next_cursor=next_cursor)
