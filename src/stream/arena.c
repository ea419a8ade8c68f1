/*-------------------------------------------------------------------------
 *
 * arena.c
 *		Memory that is given back all at once.
 *
 * A batch takes a few hundred bytes for each row, in many small pieces, and
 * forgets all of them when it is sent.  So a piece has no header and is not
 * rounded up; and the blocks stay for the next batch, up to ARENA_KEEP, since
 * to get megabytes from the system and touch them for the first time takes
 * longer than to fill them.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "stream/arena.h"
#include "utils/memutils.h"

#define ARENA_FIRST		((Size) 16 * 1024)		/* blocks: the first, */
#define ARENA_BLOCK		((Size) 1024 * 1024)	/* and the later ones */
#define ARENA_KEEP		((Size) 16 * 1024 * 1024)

struct ArenaBlock
{
	ArenaBlock *next;
	Size		size;			/* of what can be taken */
};

#define BLOCK_HEADER	MAXALIGN(sizeof(ArenaBlock))

static char *
begin_of(ArenaBlock *block)
{
	return (char *) block + BLOCK_HEADER;
}

static void
take_from(Arena *arena, ArenaBlock *block)
{
	arena->current = block;
	arena->next = begin_of(block);
	arena->end = arena->next + block->size;
}

static ArenaBlock *
new_block(Arena *arena, Size size)
{
	ArenaBlock *block = MemoryContextAllocHuge(arena->context,
											   BLOCK_HEADER + size);

	block->next = NULL;
	block->size = size;
	return block;
}

/*
 * Make an empty arena in CurrentMemoryContext.
 */
Arena *
arena_create(void)
{
	Arena	   *arena = palloc0_object(Arena);

	arena->context = CurrentMemoryContext;
	arena->first = new_block(arena, ARENA_FIRST);
	take_from(arena, arena->first);
	return arena;
}

/*
 * Take from the next block, or from a new one, which begins with these bytes.
 */
void *
arena_refill(Arena *arena, Size size)
{
	ArenaBlock *block = arena->current->next;

	if (block == NULL || block->size < size)
	{
		block = new_block(arena, Max(size, ARENA_BLOCK));
		block->next = arena->current->next;
		arena->current->next = block;
	}
	take_from(arena, block);
	arena->next += size;
	return begin_of(block);
}

/*
 * Forget everything that was taken.
 */
void
arena_reset(Arena *arena)
{
	ArenaBlock **place = &arena->first->next;
	Size		kept = 0;

	while (*place != NULL)
	{
		ArenaBlock *block = *place;

		/* one that was made for a large value, or is more than is usual */
		if (block->size > ARENA_BLOCK || kept + block->size > ARENA_KEEP)
		{
			*place = block->next;
			pfree(block);
			continue;
		}
		kept += block->size;
		place = &block->next;
	}
	take_from(arena, arena->first);
}
