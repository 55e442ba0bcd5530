{{/* The parts of a replica's container. */}}

{{- define "lastword.gateway.env" -}}
- name: POD_IP
  valueFrom:
    fieldRef:
      fieldPath: status.podIP
- name: LASTWORD_LISTEN
  value: {{ printf "%s:%d" .Values.listenHost (int64 .Values.port) | quote }}
- name: LASTWORD_ADVERTISED_URL
  value: {{ printf (ternary "http://[$(POD_IP)]:%d" "http://$(POD_IP):%d" (contains ":" .Values.listenHost)) (int64 .Values.port) | quote }}
- name: LASTWORD_DATA_DIR
  value: /var/lib/lastword
{{ include "lastword.database.env" . }}
- name: LASTWORD_CLIENT_TOKENS_FILE
  value: /etc/lastword/auth/client-tokens
- name: LASTWORD_OPERATOR_TOKENS_FILE
  value: /etc/lastword/auth/operator-tokens
- name: LASTWORD_DRAIN
  value: {{ printf "%ds" (int64 .Values.drain.seconds) | quote }}
{{- if .Values.kubernetesRuntime.enabled }}
- name: LASTWORD_KUBERNETES
  value: "true"
- name: LASTWORD_KUBERNETES_NAMESPACE
  value: {{ include "lastword.runtimeNamespace" . | quote }}
- name: LASTWORD_KUBERNETES_FLEET
  value: {{ include "lastword.fleet" . | quote }}
- name: LASTWORD_KUBERNETES_GATEWAY_URL
  value: {{ include "lastword.serviceUrl" . | quote }}
{{- if include "lastword.ownsWorkers" . }}
# Worker pods belong to it: an uninstall takes them along.
- name: LASTWORD_KUBERNETES_OWNER
  value: {{ include "lastword.fullname" . | quote }}
{{- end }}
{{- end }}
{{- range $key, $value := .Values.settings }}
{{- if and (not (kindIs "invalid" $value)) (ne (toString $value) "") }}
- name: LASTWORD_{{ upper $key }}
  value: {{ ternary (toString $value) (toString (int64 $value)) (kindIs "string" $value) | quote }}
{{- end }}
{{- end }}
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "lastword.gateway.probes" -}}
{{- range $name, $path := dict "startupProbe" "/livez" "livenessProbe" "/livez" "readinessProbe" "/readyz" }}
{{ $name }}:
  httpGet:
    path: {{ $path }}
    port: http
  {{- with get $.Values.probes (trimSuffix "Probe" $name) }}
  periodSeconds: {{ int64 .periodSeconds }}
  timeoutSeconds: {{ int64 .timeoutSeconds }}
  failureThreshold: {{ int64 .failureThreshold }}
  {{- end }}
{{- end }}
{{- end -}}

{{- define "lastword.gateway.mounts" -}}
- name: workspaces
  mountPath: /var/lib/lastword
- name: tmp
  mountPath: /tmp
- name: auth
  mountPath: /etc/lastword/auth
  readOnly: true
{{- include "lastword.database.mounts" . }}
{{- if .Values.agentSecrets }}
- name: agent-secrets
  mountPath: /etc/lastword/secrets
  readOnly: true
{{- end }}
{{- with .Values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "lastword.gateway.volumes" -}}
- name: workspaces
  emptyDir:
    sizeLimit: {{ .Values.workspaces.sizeLimit | quote }}
- name: tmp
  emptyDir:
    sizeLimit: {{ .Values.workspaces.tmpSizeLimit | quote }}
- name: auth
  secret:
    secretName: {{ include "lastword.auth.secretName" . | quote }}
    defaultMode: 0440
    items:
      - key: {{ include "lastword.auth.key" (dict "root" . "key" "clientTokensKey") | quote }}
        path: client-tokens
      - key: {{ include "lastword.auth.key" (dict "root" . "key" "operatorTokensKey") | quote }}
        path: operator-tokens
{{- include "lastword.database.volumes" . }}
{{- with .Values.agentSecrets }}
- name: agent-secrets
  projected:
    defaultMode: 0440
    sources:
      {{- range . }}
      - secret:
          name: {{ .secretName | quote }}
          items:
            - key: {{ .key | quote }}
              path: {{ .name | quote }}
      {{- end }}
{{- end }}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}
