// Users of an Express application with the real connect-pg-simple, on both sides
// at once: each request goes to a random side, after the token of the user's last
// write.  Called by 114_connect_pg_simple.pl with the two ports, the number of
// users and of each one's requests; prints what it has found as JSON.
'use strict';

const session = require('express-session');
const { Pool } = require('pg');
const PgStore = require('connect-pg-simple')(session);
const { promisify } = require('util');

const [ports, users, requests] = [
	process.argv.slice(2, 4).map(Number), +process.argv[4], +process.argv[5]
];
const found = {
	requests: 0, waits: 0, timeouts: 0, stale: [], lost: [], resurrected: [],
	different: [], logouts: 0, late: 0
};

const sides = ports.map((port) => {
	const pool = new Pool({
		host: '127.0.0.1', port, user: 'app', database: 'postgres', max: 8
	});
	const store = new PgStore({ pool, pruneSessionInterval: false });
	const side = { pool };

	for (const name of ['get', 'set', 'touch', 'destroy'])
		side[name] = promisify(store[name].bind(store));
	side.token = async () =>
		(await pool.query('SELECT bluegreen.token() AS t')).rows[0].t;
	side.wait = async (token) => {
		const { rows } = await pool.query(
			"CALL bluegreen.wait_for_token($1, '120 s', NULL)", [token]);

		found.waits++;
		if (!rows[0].reached)
			found.timeouts++;
	};
	return side;
});
const any = () => sides[Math.floor(Math.random() * 2)];
const other = (side) => sides[side === sides[0] ? 1 : 0];

// what express-session hands over
const session_of = (v) => ({
	cookie: {
		originalMaxAge: 3600000,
		expires: new Date(Date.now() + 3600000).toISOString(),
		httpOnly: true, path: '/'
	},
	v, cart: 'x'.repeat(v * 20)
});

async function both_wait() {
	const tokens = await Promise.all(sides.map((side) => side.token()));

	await sides[1].wait(tokens[0]);
	await sides[0].wait(tokens[1]);
}

// One request after the other, on any side.
async function browse(sid, state) {
	for (let i = 0; i < requests; i++) {
		const side = any();

		if (state.token)
			await side.wait(state.token);
		const sess = await side.get(sid);

		found.requests++;
		if (state.v > 0 && !sess)
			found.lost.push(sid);
		else if (state.v > 0 && sess.v !== state.v)
			found.stale.push(`${sid}: ${sess.v} instead of ${state.v}`);
		if (state.v > 0 && i % 3 === 0)
			await side.touch(sid, sess || session_of(state.v));
		else
			await side.set(sid, session_of(++state.v));
		state.token = await side.token();
	}
}

// Two requests at the same time, on both sides: one of them counts on both.
async function two_tabs(sid, state) {
	await Promise.all(sides.map((side, i) =>
		side.set(sid, session_of(state.v + 1 + i))));
	await both_wait();
	const seen = await Promise.all(sides.map((side) => side.get(sid)));

	if (!seen[0] || !seen[1])
		found.lost.push(sid);
	else if (seen[0].v !== seen[1].v || seen[0].v <= state.v)
		found.different.push(`${sid}: ${seen.map((s) => s.v)}`);
	state.v = seen[0] ? seen[0].v : 0;
}

// A logout, and a request that does not know of it, on either side.
async function leave(sid, state) {
	const side = any();

	found.logouts++;
	await Promise.all([
		side.destroy(sid), other(side).set(sid, session_of(state.v + 1)),
		side.set(sid, session_of(state.v + 2))
	]);
	state.gone = true;
}

async function main() {
	const states = [];
	const all = (step, from, to) => Promise.all(
		states.slice(from, to).map((state, i) => step(`s${from + i}`, state)));

	for (let i = 0; i < users; i++)
		states.push({ v: 0 });
	await all(browse, 0, users);
	await all(two_tabs, 0, users / 4);
	await all(leave, users / 2, users);
	await both_wait();
	for (const [i, state] of states.entries()) {
		const sid = `s${i}`;
		const seen = await Promise.all(sides.map((side) => side.get(sid)));

		if (state.gone)
			seen.forEach((s) => s && found.resurrected.push(sid));
		else
			seen.forEach((s) => (!s || s.v !== state.v) && found.lost.push(sid));
	}
	// later still: they have the cookie, and a page that was open
	for (const [i, state] of states.entries()) {
		if (!state.gone || i % 5 !== 0)
			continue;
		const side = any();

		await side.set(`s${i}`, session_of(1));
		found.late++;
		if (await side.get(`s${i}`))
			found.resurrected.push(`s${i}`);
	}
	await Promise.all(sides.map((side) => side.pool.end()));
	console.log(JSON.stringify(found));
}

main().catch((error) => {
	console.error(error);
	process.exit(1);
});
