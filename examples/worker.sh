#!/bin/sh
# A worker in plain sh. It takes the fields it needs out of the line by pattern, and puts the text,
# which is still JSON, into its answer as it came. For more than this, use a real JSON parser.
field() { printf '%s\n' "$line" | sed -nE "s/.*$1\"(([^\"\\\\]|\\\\.)*)\".*/\1/p"; }
say() { printf '{"type":"%s","turn_id":"%s"%s}\n' "$1" "$turn_id" "$2"; }

answer() {
    for word in You said: ; do
        say delta ",\"text\":\"$word \""
        sleep 0.05
    done
    say delta ",\"text\":\"$text\""
    say complete
}

job=
stop() { [ -n "$job" ] && kill "$job" 2>/dev/null; wait "$job" 2>/dev/null; [ $? -gt 128 ]; }

echo '{"type":"ready"}'
while IFS= read -r line; do
    case $line in
    *'"type":"turn"'*)
        turn_id=$(field '"turn_id":')
        text=$(field '"input":\{[^{}]*"text":')
        answer & # In the background, so that a cancel is heard in the middle of an answer.
        job=$! ;;
    *'"type":"cancel"'*)
        [ "$(field '"turn_id":')" = "$turn_id" ] && stop && say cancelled
        job= ;;
    *'"type":"shutdown"'*)
        stop
        exit 0 ;;
    esac
done
stop
exit 0
