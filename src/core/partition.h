/*-------------------------------------------------------------------------
 *
 * partition.h
 *		What row changes do not tell about partitions.
 *
 *-------------------------------------------------------------------------
 */
#ifndef BG_PARTITION_H
#define BG_PARTITION_H

/* Prefix of our own logical messages, and what the one about partitions says */
#define BG_MESSAGE_PREFIX "bluegreen"
#define BG_MESSAGE_PARTITION "partition"

extern void partition_hook_install(void);
extern bool partition_message_names(const char *content, size_t size,
									Oid relid);

#endif							/* BG_PARTITION_H */
