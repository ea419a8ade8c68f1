/*-------------------------------------------------------------------------
 *
 * lost.h
 *		What makes a stream lost.
 *
 *-------------------------------------------------------------------------
 */
#ifndef BG_LOST_H
#define BG_LOST_H

#include "core/catalog.h"

#define LOST_HINT \
	"Drop the deployment, empty the target tables, and start anew."

/* Why a stream is lost; message is NULL if it is not. */
typedef struct LostReason
{
	const char *message;		/* short: it stands in view status */
	char	   *detail;
} LostReason;

extern LostReason lost_by_slot(const char *slot_name);
extern pg_noreturn void lost_report(const char *deployment,
									const LostReason *reason);
extern pg_noreturn void lost_raise(const LostReason *reason);
extern bool lost_was_raised(void);

#endif							/* BG_LOST_H */
