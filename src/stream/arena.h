/*-------------------------------------------------------------------------
 *
 * arena.h
 *		Memory that is given back all at once.
 *
 *-------------------------------------------------------------------------
 */
#ifndef BG_ARENA_H
#define BG_ARENA_H

#include "compat.h"

typedef struct ArenaBlock ArenaBlock;

typedef struct Arena
{
	MemoryContext context;		/* of this struct and of the blocks */
	ArenaBlock *first;
	ArenaBlock *current;		/* from which is taken */
	char	   *next;
	char	   *end;
} Arena;

extern Arena *arena_create(void);
extern void arena_reset(Arena *arena);
extern void *arena_refill(Arena *arena, Size size);

/*
 * Bytes of any alignment, and not zeroed.
 */
static inline void *
arena_bytes(Arena *arena, Size size)
{
	char	   *result = arena->next;

	if (unlikely(size > (Size) (arena->end - result)))
		return arena_refill(arena, size);
	arena->next = result + size;
	return result;
}

/*
 * Memory for a struct or an array of them, not zeroed.
 */
static inline void *
arena_alloc(Arena *arena, Size size)
{
	char	   *aligned = (char *) MAXALIGN((uintptr_t) arena->next);

	/* blocks begin aligned */
	if (unlikely(aligned > arena->end ||
				 size > (Size) (arena->end - aligned)))
		return arena_refill(arena, size);
	arena->next = aligned + size;
	return aligned;
}

#endif							/* BG_ARENA_H */
