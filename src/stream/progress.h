/*-------------------------------------------------------------------------
 *
 * progress.h
 *		What the target knows of a stream.
 *
 *-------------------------------------------------------------------------
 */
#ifndef BG_PROGRESS_H
#define BG_PROGRESS_H

#include "core/catalog.h"
#include "core/peer.h"

extern void progress_session_setup(Peer *peer, const char *origin);
extern XLogRecPtr progress_read(Peer *peer);
extern void progress_check_stream(Peer *peer, const char *origin,
								  const Deployment *deployment);
extern void progress_take_over(Peer *peer, const char *origin,
							   const Deployment *deployment,
							   XLogRecPtr progress);
extern void progress_register_tables(Peer *peer, const char *origin,
									 List *rows);

#endif							/* BG_PROGRESS_H */
