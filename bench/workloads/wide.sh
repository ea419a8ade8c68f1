# Wide rows: 2 kB of text that compresses like text does, a jsonb, and three
# secondary indexes.
# shellcheck shell=bash disable=SC2154

wide='CREATE TABLE document (id int PRIMARY KEY, owner int NOT NULL,
	title text NOT NULL, changed timestamptz NOT NULL, body text NOT NULL,
	data jsonb NOT NULL);
CREATE INDEX document_owner ON document (owner);
CREATE INDEX document_title ON document (title);
CREATE INDEX document_changed ON document (changed);'

# wide_rows FROM TO: the statement that inserts them
wide_rows() {
	cat <<-SQL
		INSERT INTO document SELECT i, i % 10007, 'document ' || md5(i::text),
			now() - i * interval '1 minute', repeat(words, 4),
			jsonb_build_object('pages', i % 300, 'tags', jsonb_build_array(
				'tag ' || i % 7, 'tag ' || i % 11), 'review', jsonb_build_object(
				'state', 'open', 'by', md5((i % 50)::text), 'stars', i % 5))
		FROM generate_series($1, $2) i,
			LATERAL (SELECT string_agg(md5((i * 16 + j)::text), '') AS words
				FROM generate_series(1, 16) j) w
	SQL
}

workload_wide() {
	make_tables "$wide"
	sql blue <<<"$(wide_rows 1 "$(scaled 100000)")"
	catch_up wide
	drop_tables
}

# Half as many rows anew as there were, and as many changed: 200 transactions
# of each kind.
load_wide() {
	local size rows i
	rows=$(scaled 50000)
	size=$((rows / 200))
	for ((i = 0; i < 200; i++)); do
		wide_rows $((rows * ($1 + 1) + i * size + 1)) \
			$((rows * ($1 + 1) + (i + 1) * size))
		echo ";
		UPDATE document SET changed = now(),
			data = jsonb_set(data, '{review,state}', '\"closed by $1\"')
			WHERE id > $((i * size)) AND id <= $(((i + 1) * size));"
	done | sql blue
}
