-- The target's work alone: what must be done to the tables of schema public so
-- that they become what the tables new_* are, set-based and in plain SQL.

-- Work out the net changes, which is not measured.
CREATE FUNCTION find_changes() RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	t record;
	col name;
	changed name[];
	same text;		-- condition: the same key
BEGIN
	FOR t IN SELECT relname AS name, i.keys, c.columns
		FROM pg_class LEFT JOIN (SELECT indrelid, array_agg(attname) AS keys
				FROM pg_index JOIN pg_attribute ON attrelid = indrelid
					AND attnum = ANY (indkey)
				WHERE indisprimary GROUP BY 1) i ON indrelid = pg_class.oid,
			LATERAL (SELECT array_agg(attname ORDER BY attnum) AS columns
				FROM pg_attribute WHERE attrelid = pg_class.oid AND attnum > 0) c
		WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace
			AND relname <> 'mark' AND relname NOT SIMILAR TO '(new|ins|upd|del)\_%'
	LOOP
		EXECUTE format('DROP TABLE IF EXISTS %I, %I, %I',
			'ins_' || t.name, 'upd_' || t.name, 'del_' || t.name);
		IF t.keys IS NULL THEN
			EXECUTE format('CREATE UNLOGGED TABLE %I AS
				TABLE %I EXCEPT ALL TABLE %I',
				'ins_' || t.name, 'new_' || t.name, t.name);
			CONTINUE;
		END IF;
		SELECT string_agg(format('o.%I = n.%1$I', k), ' AND ')
			FROM unnest(t.keys) k INTO same;
		EXECUTE format('CREATE UNLOGGED TABLE %I AS SELECT n.* FROM %I n
			WHERE NOT EXISTS (SELECT FROM %I o WHERE %s)',
			'ins_' || t.name, 'new_' || t.name, t.name, same);
		EXECUTE format('CREATE UNLOGGED TABLE %I AS SELECT o.* FROM %I o
			WHERE NOT EXISTS (SELECT FROM %I n WHERE %s)',
			'del_' || t.name, t.name, 'new_' || t.name, same);
		changed := '{}';
		FOREACH col IN ARRAY t.columns LOOP
			EXECUTE format('SELECT CASE WHEN EXISTS (SELECT FROM %I o JOIN %I n ON %s
				WHERE o.%I IS DISTINCT FROM n.%4$I) THEN $1 || %4$L::name ELSE $1 END',
				t.name, 'new_' || t.name, same, col) INTO changed USING changed;
		END LOOP;
		IF changed <> '{}' THEN
			EXECUTE format('CREATE UNLOGGED TABLE %I AS
				SELECT %s FROM %I n JOIN %I o ON %s WHERE %s',
				'upd_' || t.name,
				(SELECT string_agg(format('n.%I', c), ', ')
					FROM unnest(t.keys || changed) c),
				'new_' || t.name, t.name, same,
				(SELECT string_agg(format('o.%I IS DISTINCT FROM n.%1$I', c), ' OR ')
					FROM unnest(changed) c));
		END IF;
	END LOOP;
END $$;

-- Apply them.
CREATE FUNCTION apply_changes() RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	t record;
BEGIN
	FOR t IN SELECT c.relname AS changes, substr(c.relname, 5) AS name,
			left(c.relname, 3) AS kind, keys, columns
		FROM pg_class c LEFT JOIN (SELECT indrelid, array_agg(attname) AS keys
				FROM pg_index JOIN pg_attribute ON attrelid = indrelid
					AND attnum = ANY (indkey)
				WHERE indisprimary GROUP BY 1) i
				ON indrelid = to_regclass(quote_ident(substr(relname, 5))),
			LATERAL (SELECT array_agg(attname) AS columns
				FROM pg_attribute WHERE attrelid = c.oid AND attnum > 0) a
		WHERE relnamespace = 'public'::regnamespace
			AND relname SIMILAR TO '(ins|upd|del)\_%' ORDER BY kind
	LOOP
		IF t.kind = 'ins' THEN
			EXECUTE format('INSERT INTO %I TABLE %I', t.name, t.changes);
		ELSIF t.kind = 'upd' THEN
			EXECUTE format('UPDATE %I o SET %s FROM %I n WHERE %s', t.name,
				(SELECT string_agg(format('%I = n.%1$I', c), ', ')
					FROM unnest(t.columns) c WHERE c <> ALL (t.keys)),
				t.changes,
				(SELECT string_agg(format('o.%I = n.%1$I', c), ' AND ')
					FROM unnest(t.keys) c));
		ELSE
			EXECUTE format('DELETE FROM %I o USING %I n WHERE %s', t.name,
				t.changes,
				(SELECT string_agg(format('o.%I = n.%1$I', c), ' AND ')
					FROM unnest(t.keys) c));
		END IF;
	END LOOP;
END $$;
