# frozen_string_literal: true

require_relative 'release'

# Checks of the rendered files of a job: JSON, YAML, shell, alert rules, monit, and the
# configuration with the real program.
module Checks
  # Job to program, flag of the configuration file.
  PROGRAMS = {
    'locket' => ['lock-server', '-config'],
    'policy-server-asg-syncer' => ['syncer', '-config-file'],
    'policy-store' => ['policy-store', '-config-file'],
    'cell-agent' => ['cell-agent', '-config-file']
  }.freeze

  private

  def check_files(job, files)
    Dir.mktmpdir do |root|
      files.each { |file, text| write(root, job, file, text) }
      files.each { |file, text| check_file(root, job, file, text) }
      check_monit(root, job, files['monit'])
      check_config(root, job)
      check_context(root) if job == 'portcullisctl'
    end
  end

  # Files are blank. Scripts do nothing: the agent runs them all the same, cannot execute
  # an empty file, and reads a number from drain.
  def check_disabled(job, files)
    Dir.mktmpdir do |root|
      files.each do |file, text|
        next assert_empty(text.strip, file) unless file.start_with?('bin/')

        output = assert_success(write(root, job, file, text))
        assert_equal file == 'bin/drain' ? "0\n" : '', output, file
      end
    end
  end

  def write(root, job, file, text)
    path = "#{root}/var/vcap/jobs/#{job}/#{file}"
    FileUtils.mkdir_p(File.dirname(path))
    File.write(path, text, perm: file.start_with?('bin/') ? 0o755 : 0o644)
    path
  end

  def check_file(root, job, file, text)
    path = "#{root}/var/vcap/jobs/#{job}/#{file}"
    case file
    when /\.json\z/ then JSON.parse(text)
    when /\.alerts\.yml\z/ then assert_success('promtool', 'check', 'rules', path)
    when /\.yml\z/ then assert_kind_of(Hash, YAML.safe_load(text), file)
    when %r{\Abin/}
      assert_match(/\A#!/, text, file)
      assert_success('shellcheck', '--exclude=SC1091', path)
    end
    assert_equal text.count("\n").positive? ? "\n" : '', text[-1].to_s, "#{file} ends with a newline" unless text.empty?
  end

  def check_monit(root, job, text)
    return if text.strip.empty?

    path = "#{root}/monitrc-#{job}"
    File.write(path, "set daemon 10\n#{text}", perm: 0o600)
    assert_success('monit', '-t', '-c', path)
  end

  # The configuration as the program reads it, with its paths below `root`.
  def check_config(root, job)
    program, flag = PROGRAMS[job] || return
    path = "#{root}/var/vcap/jobs/#{job}/config/#{job}.json"
    File.write(path, File.read(path).gsub('/var/vcap/', "#{root}/var/vcap/"))
    output = assert_success("#{Release::PROGRAMS}/#{program}", '--check-config', flag, path)
    refute_match(/unknown/, output)
  end

  # portcullisctl reads the context file, then fails at the socket, which does not exist.
  def check_context(root)
    path = "#{root}/var/vcap/jobs/portcullisctl/config/context.json"
    output, = Release.run("#{Release::PROGRAMS}/portcullisctl", '--context', path, '--cell-socket', "#{root}/none", 'cell')
    assert_match(/No such file|connect/, output)
    refute_match(/context file/, output)
  end

  def assert_success(*command)
    output, success = Release.run(*command)
    assert success, "#{command.join(' ')}:\n#{output}"
    output
  end
end
