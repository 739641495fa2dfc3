# frozen_string_literal: true

require 'minitest/autorun'
require_relative 'lib/manifest'

# The jobs that the operations files give, started together in one network namespace with
# the deployment's certificates, passwords, names and ports, and a development Cloud
# Controller: each accepts the others, and security groups reach the cell.
class DeploymentTest < Minitest::Test
  BASE = %w[cf-deployment/scale-to-one-az use-portcullis-release].freeze
  BESIDE = (BASE + %w[swap-all use-embedded-database]).freeze
  INSTEAD = (BASE + %w[swap-locket swap-policy-server-internal swap-asg-syncer swap-vxlan-policy-agent
                       add-portcullisctl use-embedded-database]).freeze
  POLL = { 'type' => 'replace', 'value' => 'http',
           'path' => '/instance_groups/name=diego-cell/jobs/name=cell-agent/properties/portcullis/policy_server_api?' }.freeze
  PROCESSES = [%w[diego-api locket], %w[api policy-store], %w[api policy-server-asg-syncer], %w[diego-cell cell-agent]].freeze
  # Cloud Controller and UAA have one certificate in the development Cloud Controller.
  SERVER = { 'name' => 'server', 'type' => 'certificate', 'options' => {
    'ca' => 'uaa_ca', 'common_name' => 'uaa.service.cf.internal', 'extended_key_usage' => %w[server_auth],
    'alternative_names' => %w[uaa.service.cf.internal cloud-controller-ng.service.cf.internal]
  } }.freeze
  HOSTS = %w[localhost locket.service.cf.internal policy-server.service.cf.internal uaa.service.cf.internal
             cloud-controller-ng.service.cf.internal].freeze
  NAMESPACE = %w[timeout 180 unshare --map-root-user --net --mount --pid --fork --kill-child].freeze
  DIRECTORIES = %w[store/locket store/policy-store data/cell-agent data/container-metadata data/garden-cni].freeze

  def test_store_beside_policy_server_internal
    run_deployment(BESIDE, { 'locks' => '"key":"policy-server-asg-syncer"', 'groups' => '"name":"public_networks"',
                             'cells' => '"connected":true,"behind":0', 'cell' => '"store_connected":true' })
  end

  # The agent reads the groups from the JSON API of the store.
  def test_polled_store_instead_of_policy_server_internal
    run_deployment(INSTEAD, { 'groups' => '"name":"public_networks"', 'cell' => '"store_connected":true' }, [POLL])
  end

  private

  # Starts the jobs, and asks portcullisctl until each command prints its text.
  def run_deployment(files, answers, operations = [])
    Dir.mktmpdir do |root|
      lay_out(root, files, operations)
      output, success = Release.run(*NAMESPACE, 'bash', '-c', script(root, answers))
      assert success, "#{output}\n#{logs(root)}"
    end
  end

  def lay_out(root, files, operations)
    server = { 'type' => 'replace', 'path' => '/variables/-', 'value' => SERVER }
    manifest = Manifest.with(*files).apply([server, *operations])
    write_cloud_controller("#{root}/cc", manifest.variables)
    (PROCESSES + [%w[api portcullisctl]]).each do |group, name|
      manifest.render(manifest.group(group), manifest.job(group, name)).each do |file, text|
        path = "#{root}/var/vcap/jobs/#{name}/#{file}"
        FileUtils.mkdir_p(File.dirname(path))
        File.write(path, below(root, text), perm: 0o755)
      end
    end
    DIRECTORIES.each { |directory| FileUtils.mkdir_p("#{root}/var/vcap/#{directory}") }
    File.write("#{root}/hosts", "127.0.0.1 #{HOSTS.join(' ')}\n")
  end

  def write_cloud_controller(directory, variables)
    FileUtils.mkdir_p(directory)
    %w[server cc_tls].each do |name|
      variables.value(name).each { |part, text| File.write("#{directory}/#{name}.#{part}", text) }
    end
    files = ->(name) { { 'cert_file' => "#{directory}/#{name}.certificate", 'key_file' => "#{directory}/#{name}.private_key" } }
    client = { 'id' => 'network-policy', 'secret' => variables.value('uaa_clients_network_policy_secret'),
               'authorities' => %w[uaa.resource cloud_controller.admin_read_only] }
    File.write("#{directory}/config.json", JSON.generate(
      'api_address' => '127.0.0.1:9024', 'uaa_address' => '127.0.0.1:8443', 'internal_address' => '127.0.0.1:9023',
      'tls' => files.call('server'), 'clients' => [client],
      'internal_tls' => files.call('cc_tls').merge('ca_file' => "#{directory}/cc_tls.ca")
    ))
  end

  def below(root, text)
    text.gsub('/var/vcap/packages/portcullis/bin', Release::PROGRAMS).gsub('/var/vcap/', "#{root}/var/vcap/")
  end

  # Starts the processes as their bpm.yml says, waits, asks them, and stops them.
  def script(root, answers)
    <<~SHELL
      export PATH="$PATH:/usr/sbin:/sbin"
      mount -t tmpfs none /run && mount --bind #{root}/hosts /etc/hosts
      ip link set lo up && ip address add 10.0.16.5/32 dev lo
      trap 'kill $(jobs -p); wait' EXIT
      #{Release::PROGRAMS}/portcullis-dev cloud-controller --config-file #{root}/cc/config.json >#{root}/cc.log 2>&1 &
      #{PROCESSES.map { |_, name| "#{command(root, name)} >#{root}/#{name}.log 2>&1 &" }.join("\n")}
      for job in #{PROCESSES.map(&:last).join(' ')}; do
        timeout 60 "#{root}/var/vcap/jobs/$job/bin/post-start" || exit 1
      done
      ask() {
        for _ in {1..100}; do
          answer=$(#{root}/var/vcap/jobs/portcullisctl/bin/portcullisctl --json "$1" 2>&1)
          [[ $answer != *"$2"* ]] || return 0
          sleep 0.1
        done
        echo "$1 has no $2: $answer"
        exit 1
      }
      #{answers.map { |command, text| "ask #{command} '#{text}'" }.join("\n")}
    SHELL
  end

  def command(root, name)
    process = YAML.safe_load_file("#{root}/var/vcap/jobs/#{name}/config/bpm.yml").fetch('processes').first
    [process.fetch('executable'), *process['args']].join(' ')
  end

  def logs(root)
    ['cc', *PROCESSES.map(&:last)].map { |name| "#{name}: #{File.readlines("#{root}/#{name}.log").last(3).join}" }.join
  end
end
