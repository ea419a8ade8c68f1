/*-------------------------------------------------------------------------
 *
 * transform.h
 *		A transform: its allowed class, its compiled form, its evaluation.
 *
 *-------------------------------------------------------------------------
 */
#ifndef BG_TRANSFORM_H
#define BG_TRANSFORM_H

#include "access/tupdesc.h"
#include "core/catalog.h"
#include "datatype/timestamp.h"
#include "executor/tuptable.h"
#include "nodes/bitmapset.h"
#include "nodes/execnodes.h"
#include "nodes/parsenodes.h"
#include "utils/relcache.h"

/* How values are turned into bytes (wire.c). */
typedef enum WireEncoding
{
	WIRE_BY_OUTPUT,				/* text */
	WIRE_BY_SEND,
	WIRE_CONTENT,				/* what a varlena holds */
	WIRE_8_BYTES,				/* in network order */
	WIRE_4_BYTES,
	WIRE_2_BYTES,
	WIRE_BOOL,
	WIRE_UUID
} WireEncoding;

/* How keys are hashed and compared (key.c). */
typedef enum KeyKind
{
	KEY_OTHER,					/* by the type's functions */
	KEY_INT8,					/* as a number */
	KEY_INT4,
	KEY_INT2,
	KEY_OID,
	KEY_UUID					/* ordered by its first bytes first */
} KeyKind;

/* One target column, compiled. */
typedef struct TransformColumn
{
	MappingColumn *def;
	Oid			type;			/* of the value, coerced to the target's type */
	int32		typmod;
	Oid			collation;
	int16		typlen;
	bool		typbyval;
	AttrNumber	source_attno;	/* plain column of the source, or 0 */
	ExprState  *state;			/* NULL for a plain column */
	Bitmapset  *reads;			/* source attribute numbers */
	bool		depends_on_commit;	/* reads commit_time() or commit_lsn() */
	bool		finds_row;		/* without a key: the target's row is found by
								 * this column among others */
	char	   *carrier;		/* type of the parameter that carries it */
	FmgrInfo	send;			/* type's send function (binary, array) */
	FmgrInfo	output;			/* type's output function */
	WireEncoding encoding;
	/* key columns only; compare.fn_oid may be invalid */
	KeyKind		key_kind;
	FmgrInfo	hash;
	FmgrInfo	equal;
	FmgrInfo	compare;
} TransformColumn;

/* What was true of a source column when the mapping was compiled. */
typedef struct SourceAttribute
{
	NameData	name;
	Oid			type;
	int32		typmod;
	bool		dropped;
	bool		toastable;
} SourceAttribute;

/* A column that a transform reads and that is not what it was made for. */
typedef struct Misfit
{
	const char *column;			/* NULL = there is none */
	const char *reason;			/* as a sentence, for errdetail */
} Misfit;

typedef struct Transform
{
	MappingRow *row;
	int			number;			/* in the stream's list, from 0 */
	int			ncolumns;
	TransformColumn *columns;
	bool		secret;			/* values must not be shown: sessions */
	int			nkeys;			/* 0: a mapping without a key (keyless.c) */
	int		   *keys;			/* indexes into columns */
	int			nfinds;			/* key columns, and with a lookup what else ... */
	int		   *finds;			/* ... finds the target's row, which come last */
	ExprState  *filter;			/* NULL = every row */
	Bitmapset  *filter_reads;
	Bitmapset  *key_reads;
	Bitmapset  *reads;			/* all of the above and the columns' */
	bool		reads_whole_row;	/* also columns that are added later */
	Misfit		misfit;			/* reads whole rows, and the table has other
								 * columns than when it was mapped */
	bool		runs_user_code; /* user-defined functions: needs a snapshot
								 * and the owner's identity */
	TupleDesc	source_desc;	/* copy of the source's descriptor */
	SourceAttribute *source;	/* per attribute, natts of source_desc */
	Bitmapset  *identity;		/* replica identity columns; all if FULL */
	bool		identity_full;
	Oid			chunk_index;	/* replica identity index, or the primary key
								 * under FULL; invalid if there is none */
	Bitmapset  *chunk_key;		/* its columns */
	bool		chunkable;		/* target key <-> chunk key, one to one */
	Query	   *query;			/* the transform, its table is varno 1, its
								 * columns coerced to the target's types */
	ExprContext *econtext;
	TupleTableSlot *slot;		/* virtual, of source_desc */
} Transform;

/* The transaction that commit_time() and commit_lsn() speak of. */
typedef struct TransformMoment
{
	TimestampTz commit_time;
	XLogRecPtr	commit_lsn;
} TransformMoment;

extern TransformMoment transform_moment;

/*
 * Parse and analyze the text of a transform over one source table and refuse
 * what lies outside the allowed class, naming the construct.  Runs under the
 * caller's search_path and privileges.
 */
extern Query *transform_parse(const char *text, Oid source);

/*
 * Compile a stored mapping into long-lived structs in CurrentMemoryContext.
 * Needs a transaction and no decoding context.
 */
extern Transform *transform_compile(MappingRow *row);

/*
 * The columns of the source, as MappingRow.row_shape has them.
 */
extern List *transform_row_shape(const Transform *transform);

/*
 * Refuse a mapping that a change may not carry enough for (decision 2); the
 * hint is the ALTER TABLE that mends it.
 */
extern void transform_check_identity(Transform *transform);
extern bool transform_identity_suffices(const Transform *transform,
										const Bitmapset *identity);

/* identity.c */
extern Bitmapset *relation_identity(Relation relation, bool *full);
extern Bitmapset *index_columns(Oid indexid);
extern void transform_find_identity(Transform *transform, Relation source);

/*
 * Evaluate over transform->slot, which the caller has filled.  absent: source
 * attributes without a value (unchanged TOAST), or NULL.  Returns false if
 * the filter leaves the row out.  Values live in CurrentMemoryContext.
 */
extern void transform_fill_slot(Transform *transform, HeapTuple tuple,
								TupleDesc desc, int first);
extern bool transform_filter(Transform *transform);
extern bool transform_row(Transform *transform, const Bitmapset *absent,
						  Datum *values, bool *isnull, bool *missing);
extern void transform_key(Transform *transform, Datum *values, bool *isnull);
extern void transform_check_key(const Transform *transform,
								const bool *isnull);
extern bool transform_key_equal(Transform *transform, const Datum *a,
								const Datum *b);
extern bool transform_finds_equal(Transform *transform, const Datum *a,
								  const bool *a_null, const Datum *b,
								  const bool *b_null);

/*
 * Run user-defined code as the mapping's owner under the current (historic)
 * snapshot; both do nothing for transforms without such code.
 */
typedef struct TransformUser
{
	Oid			userid;
	int			sec_context;
	int			guc_level;
	bool		switched;
} TransformUser;

extern void transform_enter(Transform *transform, TransformUser *saved);
extern void transform_enter_owner(Transform *transform, TransformUser *saved);
extern void transform_leave(const TransformUser *saved);

#endif							/* BG_TRANSFORM_H */
