/*-------------------------------------------------------------------------
 *
 * partition.h
 *		What row changes do not tell about partitions.
 *
 *-------------------------------------------------------------------------
 */
#ifndef BG_PARTITION_H
#define BG_PARTITION_H

/* Prefix of our own logical messages (positions of the copy). */
#define BG_MESSAGE_PREFIX "bluegreen"

extern void partition_hook_install(void);
extern void ddl_watch_install(void);	/* ddl.c, which is told by that hook */
extern Oid	partition_change_relid(void);
extern bool partition_change_names(const char *content, Oid relid);

#endif							/* BG_PARTITION_H */
