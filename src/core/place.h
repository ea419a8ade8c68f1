/*-------------------------------------------------------------------------
 *
 * place.h
 *		Where a deployment's source lives.
 *
 *-------------------------------------------------------------------------
 */
#ifndef BG_PLACE_H
#define BG_PLACE_H

#include "core/catalog.h"

extern char *source_place(void);
extern bool source_is_here(const Deployment *deployment);
extern char *source_timeline(void);
extern XLogRecPtr source_check_timeline(const Deployment *deployment,
										const char *known);
extern void source_check_place(const Deployment *deployment);

#endif							/* BG_PLACE_H */
