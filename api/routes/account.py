"""What a tenant has and may have, how busy its queue is, and what was done with its keys."""

from fastapi import APIRouter

from api.auth import Admin, Reader
from api.dependencies import SettingsDep, UnitDep
from api.paging import Cursor, Limit, paged
from api.schemas.jobs import AuditPage, AuditView, QueueView, UsageView
from api.schemas.problems import ERRORS
from jobs.queue import jobs
from jobs.tables import Tenant
from jobs.tenants import audit, quotas
from jobs.tenants.quotas import Quotas

router = APIRouter(responses=ERRORS)


@router.get("/usage")
def usage(who: Reader, unit: UnitDep, settings: SettingsDep) -> UsageView:
    """How many jobs, uploads and bytes there are, beside how many there may be."""
    tenant = unit.session.get_one(Tenant, who.tenant)
    has, may = quotas.get_usage(unit.session, who.tenant), Quotas.from_settings(settings).for_tenant(tenant)
    return UsageView(**vars(has), **vars(may), max_running=tenant.max_running)


@router.get("/queue")
def queue(who: Reader, unit: UnitDep) -> QueueView:
    """How many jobs wait and run, and for how long the first has waited."""
    has = quotas.get_usage(unit.session, who.tenant)
    return QueueView(queued=has.queued, running=has.running, oldest_queued_s=jobs.oldest_queued_s(unit.session, who.tenant))


@router.get("/audit")
def lines(who: Admin, unit: UnitDep, cursor: Cursor = None, limit: Limit = 50) -> AuditPage:
    """Cancels, deletions and everything about keys, the newest first."""
    found = audit.page(unit.session, who.tenant, limit=limit + 1, before=cursor)
    page, more = paged(found, limit, lambda line: line.seq)
    return AuditPage(lines=list(map(AuditView.model_validate, page)), next_cursor=more)
