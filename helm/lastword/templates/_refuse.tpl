{{/*
Values that parse and that no release should run with. Each is refused with what to do instead; what one
value alone can have wrong is refused by values.schema.json.
*/}}

{{- define "lastword.graceLeast" -}}
{{- add (int64 .Values.drain.preStopSeconds) (int64 .Values.drain.seconds) (int64 .Values.drain.marginSeconds) -}}
{{- end -}}

{{- define "lastword.grace" -}}
{{- if kindIs "invalid" .Values.terminationGracePeriodSeconds -}}
{{ include "lastword.graceLeast" . }}
{{- else -}}
{{ int64 .Values.terminationGracePeriodSeconds }}
{{- end -}}
{{- end -}}

{{/* The variables that the chart sets itself, one a line. */}}
{{- define "lastword.ownVariables" -}}
POD_IP
DATABASE_URL
OTEL_EXPORTER_OTLP_ENDPOINT
OTEL_EXPORTER_OTLP_TRACES_ENDPOINT
LASTWORD_CONFIG
LASTWORD_LISTEN
LASTWORD_ADVERTISED_URL
LASTWORD_DATA_DIR
LASTWORD_DATABASE_URL
LASTWORD_DATABASE_URL_FILE
LASTWORD_LISTENER_DATABASE_URL
LASTWORD_LISTENER_DATABASE_URL_FILE
LASTWORD_CLIENT_TOKENS
LASTWORD_CLIENT_TOKENS_FILE
LASTWORD_OPERATOR_TOKENS
LASTWORD_OPERATOR_TOKENS_FILE
LASTWORD_DRAIN
LASTWORD_KUBERNETES
LASTWORD_KUBERNETES_NAMESPACE
LASTWORD_KUBERNETES_FLEET
LASTWORD_KUBERNETES_GATEWAY_URL
LASTWORD_KUBERNETES_OWNER
{{- range $key, $_ := .Values.settings }}
LASTWORD_{{ upper $key }}
{{- end }}
{{- end -}}

{{- define "lastword.refuse" -}}
{{- $v := .Values -}}
{{- $sources := list -}}
{{- if $v.database.existingSecret }}{{ $sources = append $sources "database.existingSecret" }}{{ end -}}
{{- if $v.database.urlFile }}{{ $sources = append $sources "database.urlFile" }}{{ end -}}
{{- if $v.cnpg.enabled }}{{ $sources = append $sources "cnpg.enabled" }}{{ end -}}
{{- if $v.postgres.enabled }}{{ $sources = append $sources "postgres.enabled" }}{{ end -}}
{{- if eq (len $sources) 0 -}}
{{- fail "Where is Postgres? Set one of database.existingSecret (a Secret with its URL), database.urlFile, cnpg.enabled (the CloudNativePG operator makes it) or postgres.enabled (one pod, for a trial)." -}}
{{- else if gt (len $sources) 1 -}}
{{- fail (printf "Which Postgres? Keep one of %s." (join ", " $sources)) -}}
{{- end -}}
{{- if and $v.cnpg.enabled (ge (int64 $v.cnpg.synchronousStandbys) (int64 $v.cnpg.instances)) -}}
{{- fail (printf "cnpg.synchronousStandbys is %d of %d instances, of which one is the primary: no commit would ever count." (int64 $v.cnpg.synchronousStandbys) (int64 $v.cnpg.instances)) -}}
{{- end -}}
{{- $there := ternary $v.cnpg.maxConnections $v.postgres.maxConnections $v.cnpg.enabled | int64 -}}
{{- $most := ternary $v.replicas $v.autoscaling.max (eq $v.autoscaling.by "none") | int64 -}}
{{- $needed := add (mul (add $most 1) (add (int64 (default 8 $v.settings.pool_max)) 3)) 10 -}}
{{- if and (or $v.cnpg.enabled $v.postgres.enabled) (gt $needed $there) -}}
{{- fail (printf "A roll-out of %d replicas may take %d connections, 10 spare ones included, and Postgres has %d: raise maxConnections, or lower settings.pool_max." $most $needed $there) -}}
{{- end -}}
{{- if and $v.database.listener.existingSecret $v.database.listener.urlFile -}}
{{- fail "Keep one of database.listener.existingSecret and database.listener.urlFile." -}}
{{- end -}}
{{- if lt (int64 (include "lastword.grace" .)) (int64 (include "lastword.graceLeast" .)) -}}
{{- fail (printf "terminationGracePeriodSeconds is %s, but drain.preStopSeconds + drain.seconds + drain.marginSeconds is %s: the kubelet would kill replicas that still owe last words. Leave it empty, or lower drain.seconds." (include "lastword.grace" .) (include "lastword.graceLeast" .)) -}}
{{- end -}}
{{- if ne $v.autoscaling.by "none" -}}
{{- if gt (int64 $v.autoscaling.min) (int64 $v.autoscaling.max) -}}
{{- fail "autoscaling.min is above autoscaling.max." -}}
{{- end -}}
{{- end -}}
{{- if and (eq $v.autoscaling.by "cpu") (not (dig "requests" "cpu" "" $v.resources)) -}}
{{- fail "autoscaling.by is cpu, which is a percentage of resources.requests.cpu: set that." -}}
{{- end -}}
{{- if and (eq $v.autoscaling.by "queue") $v.database.urlFile (not $v.autoscaling.queue.authenticationRef) -}}
{{- fail "autoscaling.by is queue, and KEDA cannot read database.urlFile: set autoscaling.queue.authenticationRef to a TriggerAuthentication with `connection`." -}}
{{- end -}}
{{- if and $v.pdb.enabled (eq (kindIs "invalid" $v.pdb.minAvailable) (kindIs "invalid" $v.pdb.maxUnavailable)) -}}
{{- fail "Set exactly one of pdb.minAvailable and pdb.maxUnavailable, the other to null." -}}
{{- end -}}
{{- if and $v.httpRoute.enabled (not $v.httpRoute.parentRefs) -}}
{{- fail "httpRoute.enabled needs httpRoute.parentRefs: the Gateways that it belongs to." -}}
{{- end -}}
{{- if and $v.ingress.enabled (not $v.ingress.hosts) -}}
{{- fail "ingress.enabled needs ingress.hosts: without a host it would take every request of the controller." -}}
{{- end -}}
{{- $rolling := default dict $v.strategy.rollingUpdate -}}
{{- if and (eq $v.strategy.type "RollingUpdate") (has (toString $rolling.maxSurge) (list "0" "0%")) (has (toString $rolling.maxUnavailable) (list "0" "0%")) -}}
{{- fail "strategy.rollingUpdate: maxSurge and maxUnavailable cannot both be 0." -}}
{{- end -}}
{{- if not (regexMatch "^[a-z]" (include "lastword.fullname" .)) -}}
{{- fail (printf "%s: the name of a Service must begin with a letter; set fullnameOverride." (include "lastword.fullname" .)) -}}
{{- end -}}
{{- $own := splitList "\n" (include "lastword.ownVariables" .) -}}
{{- $given := list -}}
{{- range $v.extraEnv -}}
{{- if has .name $given -}}
{{- fail (printf "extraEnv: %s stands twice." .name) -}}
{{- end -}}
{{- $given = append $given .name -}}
{{- if has .name $own -}}
{{- fail (printf "extraEnv: %s is set by the chart; use the value for it (settings, drain, database, auth)." .name) -}}
{{- end -}}
{{- end -}}
{{- end -}}
