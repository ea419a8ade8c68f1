/*-------------------------------------------------------------------------
 *
 * attempt.h
 *		Do something whose error is not the end of what it belongs to.
 *
 *-------------------------------------------------------------------------
 */
#ifndef BG_ATTEMPT_H
#define BG_ATTEMPT_H

extern ErrorData *attempt(void (*what) (void *arg), void *arg);
extern ErrorData *attempt_or_cancel(void (*what) (void *arg), void *arg);

#endif							/* BG_ATTEMPT_H */
