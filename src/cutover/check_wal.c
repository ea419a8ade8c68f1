/*-------------------------------------------------------------------------
 *
 * check_wal.c
 *		Preflight: room for WAL on blue, and encodings.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <sys/statvfs.h>

#include "access/xlog.h"
#include "access/xlog_internal.h"
#include "core/definition.h"
#include "cutover/preflight.h"
#include "executor/spi.h"
#include "mb/pg_wchar.h"
#include "replication/slot.h"
#include "utils/builtins.h"

#define MEGABYTE		(1024.0 * 1024.0)

/* A disk that lasts for fewer hours than this is an error, or a warning. */
#define HOURS_ERROR		1.0
#define HOURS_WARNING	24.0

/*
 * Bytes of all sources together, partitions included.
 */
static int64
size_to_copy(const Deployment *deployment)
{
	CatalogAccess access;
	CatalogArgs args = {0};
	int64		size;

	catalog_begin(&access);
	catalog_arg_int4(&args, deployment->id);
	catalog_run("SELECT COALESCE(sum(pg_table_size(relid)), 0)::bigint "
				"FROM (SELECT DISTINCT COALESCE(p.relid, m.source) "
				"FROM bluegreen.table_mapping m "
				"LEFT JOIN LATERAL pg_partition_tree(m.source) p ON true "
				"WHERE m.deployment = $1) t(relid)", &args, SPI_OK_SELECT);
	size = DatumGetInt64(catalog_value(0, 1, NULL));
	catalog_end(&access);
	return size;
}

/*
 * While a table is copied that cannot be cut, the stream may have to wait for
 * it, and its slot keeps all WAL that is written meanwhile.
 */
void
check_wal_keep(PreflightRun *run)
{
	PreflightRow row = {.severity = PREFLIGHT_WARNING};
	int64		size;

	if (max_slot_wal_keep_size_mb < 0)
		return;
	size = size_to_copy(run->deployment);
	if ((int64) max_slot_wal_keep_size_mb * 1024 * 1024 >= size)
		return;
	row.object = "max_slot_wal_keep_size";
	row.message = psprintf("\"max_slot_wal_keep_size\" (%d MB) is less than the tables to copy (" INT64_FORMAT " MB)",
						   max_slot_wal_keep_size_mb,
						   (size + 1024 * 1024 - 1) / (1024 * 1024));
	row.detail = psprintf("If more WAL than that is written while the stream has to wait, its slot is invalidated and deployment \"%s\" is lost.",
						  run->deployment->name);
	row.hint = "-- on blue\nALTER SYSTEM SET max_slot_wal_keep_size = -1;\nSELECT pg_reload_conf();";
	preflight_row(run, &row);
}

/*
 * UTF8 holds everything, and so does an encoding what is written in itself.
 * Otherwise a row may come that the peer cannot take.
 */
void
check_encoding(PreflightRun *run)
{
	PreflightRow row = {.severity = PREFLIGHT_WARNING};
	const char *there;

	if (run->peer == NULL)
		return;
	there = peer_query(run->peer, "SELECT pg_catalog.getdatabaseencoding()",
					   0, NULL)->values[0][0];
	if (strcmp(there, GetDatabaseEncodingName()) == 0 ||
		(pg_char_to_encoding(there) == PG_UTF8 &&
		 GetDatabaseEncoding() != PG_SQL_ASCII))
		return;
	row.object = "encoding";
	row.message = psprintf("encoding %s of %s cannot hold everything that encoding %s can",
						   there, peer_description(run->peer),
						   GetDatabaseEncodingName());
	row.detail = "A row with a character that does not exist there stops the stream.";
	row.hint = "-- on green\n-- create the database with ENCODING 'UTF8'";
	preflight_row(run, &row);
}

/* ---- the disk ---- */

/*
 * WAL that is written in an hour, in bytes: the average since statistics are
 * kept, or all of it if that is less than an hour ago.
 */
static double
wal_per_hour(void)
{
	CatalogAccess access;
	double		result;
	bool		isnull;

	catalog_begin(&access);
	catalog_run("SELECT (wal_bytes * 3600 / greatest(3600, extract(epoch FROM "
				"clock_timestamp() - stats_reset)))::float8 FROM pg_stat_wal",
				NULL, SPI_OK_SELECT);
	result = DatumGetFloat8(catalog_value(0, 1, &isnull));
	catalog_end(&access);
	return isnull ? 0 : result;
}

/*
 * A stream that is behind or stopped keeps WAL, and a server whose disk is full
 * of it stops.  A limit that the disk has room for is as good as a large disk
 * there: the stream is lost then, not the server.
 */
void
check_wal_space(PreflightRun *run)
{
	PreflightRow row = {.object = XLOGDIR};
	struct statvfs disk;
	double		free;
	double		hours;

	if (statvfs(XLOGDIR, &disk) != 0)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not get the size of the disk of \"%s\": %m",
						XLOGDIR)));
	if (disk.f_blocks == 0)
		return;					/* of a kind that does not tell */
	free = (double) disk.f_bavail * disk.f_frsize;
	hours = free / Max(wal_per_hour(), 1);
	if (hours >= HOURS_WARNING)
		return;
	if (max_slot_wal_keep_size_mb >= 0 &&
		max_slot_wal_keep_size_mb * MEGABYTE <= free)
		return;
	row.severity = hours < HOURS_ERROR ? PREFLIGHT_ERROR : PREFLIGHT_WARNING;
	row.message = psprintf("the disk of \"%s\" has %.0f MB left, which is WAL for %.1f hours if the stream stands still",
						   XLOGDIR, free / MEGABYTE, hours);
	row.detail = "Blue stops when that disk is full.";
	row.hint = psprintf("-- on blue\n-- this gives up the stream before the disk is full; a larger disk is better\nALTER SYSTEM SET max_slot_wal_keep_size = '%.0fMB';\nSELECT pg_reload_conf();",
						Max(free / MEGABYTE / 2, 1));
	preflight_row(run, &row);
}
