/*-------------------------------------------------------------------------
 *
 * owner.c
 *		As whom a stream's processes run: the deployment's owner.
 *
 * A stream's worker and its copy workers are sessions of the owner, so that
 * nothing that a transform, a table or a setting can do to them gives anybody
 * more than the owner has.  What they need beyond that is the extension's own
 * code: its tables (catalog.c), the slot, WAL.
 *
 * Who decodes WAL sees all of it, so the owner must have REPLICATION or be a
 * superuser; and like every session's role it must be allowed to log in and to
 * connect.  create_deployment() and start() refuse others.
 *
 * A process has to know its role before it can read a table.  start() leaves
 * the owner in the stream's shared entry.  Where it is not known or may not be
 * right, as after a restart of the server, the worker connects as the
 * bootstrap superuser, looks it up with fixed SQL, checks it, leaves it in the
 * entry and ends; the next one uses it.  A check is good for one connection:
 * who fails to connect, which is FATAL, leaves an owner that is not checked,
 * and his successor says in full what is wrong.  A worker that has come
 * through says that the next one need not ask.
 *
 * Whoever alters a role makes the workers of its deployments start again, so
 * that a right that was taken away stops the stream, with an error that says
 * so.  (They could not watch the catalog themselves: decoding an ALTER ROLE
 * invalidates it, too, and does so again after each new start.)
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/objectaccess.h"
#include "catalog/pg_authid.h"
#include "commands/dbcommands.h"
#include "core/catalog.h"
#include "core/worker.h"
#include "miscadmin.h"
#include "storage/ipc.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

/* An attribute of roles that the owner needs. */
typedef struct OwnerAttribute
{
	bool		(*has) (Oid role);
	const char *name;
} OwnerAttribute;

static List *altered_roles = NIL;	/* in this transaction */
static object_access_hook_type next_object_access_hook = NULL;

static bool
can_login(Oid role)
{
	HeapTuple	tuple = SearchSysCache1(AUTHOID, ObjectIdGetDatum(role));
	bool		result = HeapTupleIsValid(tuple) &&
		((Form_pg_authid) GETSTRUCT(tuple))->rolcanlogin;

	if (HeapTupleIsValid(tuple))
		ReleaseSysCache(tuple);
	return result;
}

static bool
can_replicate(Oid role)
{
	return superuser_arg(role) || has_rolreplication(role);
}

static const OwnerAttribute attributes[] = {
	{can_login, "LOGIN"},
	{can_replicate, "REPLICATION"},
};

/*
 * Error unless workers can run as a role, which owns or is to own a
 * deployment.  Needs a transaction.
 */
void
owner_check(Oid owner, const char *deployment)
{
	char	   *name = GetUserNameFromId(owner, true);
	char	   *database = get_database_name(MyDatabaseId);

	if (name == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("owner of deployment \"%s\" does not exist",
						deployment),
				 errdetail("There is no role with OID %u.", owner),
				 errhint("Drop the deployment as a superuser.")));
	for (int i = 0; i < lengthof(attributes); i++)
		if (!attributes[i].has(owner))
			ereport(ERROR,
					(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
					 errmsg("owner \"%s\" of deployment \"%s\" lacks the attribute %s",
							name, deployment, attributes[i].name),
					 errdetail("A stream runs as the deployment's owner, which must be allowed to log in and to replicate."),
					 errhint("Use ALTER ROLE %s %s.", quote_identifier(name),
							 attributes[i].name)));
	if (!DatumGetBool(DirectFunctionCall3(has_database_privilege_id_id,
										  ObjectIdGetDatum(owner),
										  ObjectIdGetDatum(MyDatabaseId),
										  CStringGetTextDatum("CONNECT"))))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("owner \"%s\" of deployment \"%s\" lacks CONNECT on database \"%s\"",
						name, deployment, database),
				 errhint("Use GRANT CONNECT ON DATABASE %s TO %s.",
						 quote_identifier(database), quote_identifier(name))));
}

/*
 * The owner that an entry's worker is to connect as, InvalidOid if that has to
 * be found out.  It is not checked any more after that.
 */
Oid
worker_take_owner(StreamShared *s)
{
	Oid			owner;

	SpinLockAcquire(&s->mutex);
	owner = s->owner_checked ? s->owner : InvalidOid;
	s->owner_checked = false;
	SpinLockRelease(&s->mutex);
	return owner;
}

/*
 * Find out who owns an entry's deployment, leave it in the entry, and end.
 * Errors: a deployment or an owner that cannot be run.
 */
void
worker_find_owner(StreamShared *s)
{
	Deployment *deployment;

	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	deployment = deployment_load(s->deployment);
	if (deployment != NULL)
		owner_check(deployment->owner, deployment->name);
	SpinLockAcquire(&s->mutex);
	if (deployment == NULL)
		s->stop_requested = true;	/* until start() makes it anew */
	else
	{
		s->owner = deployment->owner;
		s->owner_checked = true;
		s->reload = true;		/* no delay for the next one */
		s->restarts--;			/* it is the one that counts */
	}
	SpinLockRelease(&s->mutex);
	PopActiveSnapshot();
	CommitTransactionCommand();
	if (deployment == NULL)
		stream_set_state(s, STREAM_STOPPED);
	proc_exit(0);
}

/*
 * This worker runs as the deployment's owner.  If nothing is wrong with it,
 * neither will be with the next one.  Needs a transaction.  Errors: those of
 * owner_check().
 */
void
worker_keep_owner(StreamShared *s, const char *deployment)
{
	Oid			owner = GetUserId();

	SpinLockAcquire(&s->mutex);
	s->owner = owner;
	s->owner_checked = true;
	SpinLockRelease(&s->mutex);
	PG_TRY();
	{
		owner_check(owner, deployment);
	}
	PG_CATCH();
	{
		(void) worker_take_owner(s);
		PG_RE_THROW();
	}
	PG_END_TRY();
}

/* The workers of a role start again, and look at it first. */
static void
role_altered(Oid role)
{
	for (int i = 0; i < stream_shared_count(); i++)
	{
		StreamShared *s = stream_shared_at(i);
		bool		mine;

		SpinLockAcquire(&s->mutex);
		mine = s->in_use && s->owner == role;
		if (mine)
		{
			s->owner_checked = false;
			s->reload = true;
		}
		SpinLockRelease(&s->mutex);
		if (mine)
			stream_wake(s);
	}
}

/* Transaction callback; after the commit it must not fail. */
static void
tell_at_commit(XactEvent event, void *arg)
{
	ListCell   *lc;

	if (altered_roles == NIL)
		return;
	if (event == XACT_EVENT_COMMIT)
	{
		foreach(lc, altered_roles)
		{
			role_altered(lfirst_oid(lc));
		}
	}
	if (event == XACT_EVENT_COMMIT || event == XACT_EVENT_ABORT ||
		event == XACT_EVENT_PREPARE)
		altered_roles = NIL;	/* freed with the transaction */
}

static void
watch_object_access(ObjectAccessType access, Oid classId, Oid objectId,
					int subId, void *arg)
{
	MemoryContext oldcontext;

	if (next_object_access_hook)
		next_object_access_hook(access, classId, objectId, subId, arg);
	if (classId != AuthIdRelationId ||
		(access != OAT_POST_ALTER && access != OAT_DROP))
		return;
	oldcontext = MemoryContextSwitchTo(TopTransactionContext);
	altered_roles = list_append_unique_oid(altered_roles, objectId);
	MemoryContextSwitchTo(oldcontext);
}

/*
 * Install the watch; from _PG_init(), while preloading.
 */
void
owner_watch_install(void)
{
	next_object_access_hook = object_access_hook;
	object_access_hook = watch_object_access;
	RegisterXactCallback(tell_at_commit, NULL);
}
